// Threads of one block as fibers of one host thread: what kernels, built-in functions and the host call.
#pragma once
#include <stddef.h>
#include <stdint.h>

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
};

extern "C" {
extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

// What a warp does together: called once, when every lane of `mask` has arrived, with each lane's argument.
typedef void (*sim_collective)(void **lanes, unsigned mask);

// Blocks the calling thread until all lanes of `mask` are at the same operation.
void sim_warp(sim_collective run, void *argument, unsigned mask, int line);
unsigned sim_active(int line);  // lanes that are here when no lane of the warp can go on
int sim_lane(void);
void sim_barrier(int id, int count, int line);  // count 0: all threads of the block
[[noreturn]] void sim_fail(const char *why);

// The block's shared array of a declaration (`slot`) in a function, before a page that cannot be touched; filled
// when a block starts.
void *sim_shared(int slot, const char *function, const char *name, size_t bytes, size_t alignment);
void *sim_dynamic(void);
unsigned sim_shared_address(const void *pointer);  // 32 bits, as instructions take it
void *sim_shared_pointer(unsigned address);

// Copies of cp.async: at once in ascending order, at the last permitted moment in descending order.
void sim_copy(void *to, const void *from, int bytes, int source_bytes);
void sim_copy_commit(void);
void sim_copy_wait(int groups);

unsigned sim_poison(void);  // what nobody has written, other bits in each order
}

struct sim_report {
  int code;            // 0: done
  unsigned thread[3], block[3];
  uint64_t address;    // of a memory fault
  int shared_bytes;    // static shared memory
  int line;            // in the source
  char text[232];
};

enum sim_code { SIM_DONE, SIM_MEMORY, SIM_TRAP, SIM_DIVIDE, SIM_STUCK, SIM_FAILED, SIM_OVERRUN };

typedef void (*sim_kernel)(void **arguments);

extern "C" {
void *sim_allocate(size_t bytes);
void sim_release(void *address);
int sim_run(sim_kernel kernel, void **arguments, const int *sizes, int shared_bytes, int descending,
            sim_report *report);
}
