// Scheduler: lanes run until they wait, warps after each other, blocks after each other; then backwards.
#include "sim_runtime.h"

#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>

#include "sim_memory.h"

namespace {

const int kThreads = 1024, kWarp = 32;
const size_t kStack = 256 << 10;

enum State { READY, AT_WARP, AT_ACTIVE, AT_BARRIER, DONE };

struct Fiber {
  State state;
  bool started;
  uint3 index;
  sim_collective run;
  void *argument;
  unsigned mask;
  int line, barrier, count;
  Copies copies;
  jmp_buf at;
};

Fiber fibers[kThreads];
Fiber *current;
char *stacks;
jmp_buf scheduler;
sigjmp_buf failed;
int threads, descending;
sim_kernel kernel;
void **arguments;
sim_report *report;

void fiber_main() {
  for (;;) {
    kernel(arguments);
    current->copies.finish(0);
    current->state = DONE;
    if (!_setjmp(current->at)) _longjmp(scheduler, 1);
  }
}

void resume(Fiber *fiber) {
  current = fiber;
  threadIdx = fiber->index;
  if (_setjmp(scheduler)) return;
  if (fiber->started) _longjmp(fiber->at, 1);
  fiber->started = true;
  ucontext_t start;
  getcontext(&start);
  start.uc_stack.ss_sp = stacks + (fiber - fibers) * (kStack + kPage) + kPage;
  start.uc_stack.ss_size = kStack;
  makecontext(&start, fiber_main, 0);
  setcontext(&start);
}

void wait(State state, int line) {
  current->state = state;
  current->line = line;
  if (!_setjmp(current->at)) _longjmp(scheduler, 1);
}

int first_of(int warp) { return warp * kWarp; }
int count_of(int warp) { return threads - first_of(warp) < kWarp ? threads - first_of(warp) : kWarp; }

unsigned lanes_in(int warp, State state) {
  unsigned found = 0;
  for (int lane = 0; lane < count_of(warp); ++lane)
    if (fibers[first_of(warp) + lane].state == state) found |= 1u << lane;
  return found;
}

// Runs the operation that `leader` waits at, if all of its lanes are there.
bool complete(int warp, int leader) {
  Fiber *lanes = fibers + first_of(warp);
  unsigned whole = count_of(warp) == kWarp ? ~0u : (1u << count_of(warp)) - 1;
  unsigned need = lanes[leader].mask & whole & ~lanes_in(warp, DONE);
  void *given[kWarp] = {};
  for (int lane = 0; lane < kWarp; ++lane) {
    if (!(need >> lane & 1)) continue;
    Fiber &other = lanes[lane];
    if (other.state != AT_WARP || other.run != lanes[leader].run || other.line != lanes[leader].line ||
        other.mask != lanes[leader].mask)
      return false;
    given[lane] = other.argument;
  }
  current = lanes + leader;
  threadIdx = current->index;
  lanes[leader].run(given, need);
  for (int lane = 0; lane < kWarp; ++lane)
    if (need >> lane & 1) lanes[lane].state = READY;
  return true;
}

bool resolve(int warp) {
  for (unsigned left = lanes_in(warp, AT_WARP); left; left &= left - 1)
    if (complete(warp, __builtin_ctz(left))) return true;
  unsigned active = lanes_in(warp, AT_ACTIVE);
  if (!active) return false;
  Fiber *lanes = fibers + first_of(warp);
  int line = lanes[__builtin_ctz(active)].line;
  for (int lane = 0; lane < kWarp; ++lane)
    if (active >> lane & 1 && lanes[lane].line != line) active &= ~(1u << lane);
  for (int lane = 0; lane < kWarp; ++lane)
    if (active >> lane & 1) {
      lanes[lane].mask = active;
      lanes[lane].state = READY;
    }
  return true;
}

bool run_warp(int warp) {
  bool moved = false;
  do {
    for (int i = 0; i < count_of(warp); ++i) {
      Fiber *fiber = fibers + first_of(warp) + (descending ? count_of(warp) - 1 - i : i);
      if (fiber->state != READY) continue;
      resume(fiber);
      moved = true;
    }
  } while (resolve(warp));
  return moved;
}

// Opens a barrier that all of its threads have reached.
bool open_barrier() {
  for (int i = 0; i < threads; ++i) {
    if (fibers[i].state != AT_BARRIER) continue;
    int waiting = 0, alive = 0;
    bool same = true;
    for (int j = 0; j < threads; ++j) {
      const Fiber &other = fibers[j];
      alive += other.state != DONE;
      if (other.state != AT_BARRIER || other.barrier != fibers[i].barrier) continue;
      ++waiting;
      same = same && other.line == fibers[i].line && other.count == fibers[i].count;
    }
    if (!same || waiting != (fibers[i].count ? fibers[i].count : alive)) continue;
    int id = fibers[i].barrier;
    for (int j = 0; j < threads; ++j)
      if (fibers[j].state == AT_BARRIER && fibers[j].barrier == id) fibers[j].state = READY;
    return true;
  }
  return false;
}

void fail_stuck() {
  static const char *const at[] = {"", "an operation of its warp", "__activemask", "a barrier"};
  Fiber *one = nullptr, *other = nullptr;
  int done = 0;
  for (int i = 0; i < threads; ++i) {
    Fiber *fiber = fibers + i;
    done += fiber->state == DONE;
    if (fiber->state == DONE) continue;
    if (!one) one = fiber;
    if (!other && (fiber->state != one->state || fiber->line != one->line)) other = fiber;
  }
  char text[200];
  if (other)
    snprintf(text, sizeof text, "thread %u,%u,%u waits at %s in line %d and thread %u,%u,%u at %s in line %d",
             one->index.x, one->index.y, one->index.z, at[one->state], one->line, other->index.x,
             other->index.y, other->index.z, at[other->state], other->line);
  else
    snprintf(text, sizeof text, "threads wait at %s in line %d for others that do not come; %d have ended",
             at[one->state], one->line, done);
  current = one;
  report->line = one->line;
  report->code = SIM_STUCK;
  strcpy(report->text, text);
  siglongjmp(failed, SIM_STUCK);
}

void run_block() {
  memory.start_block(sim_poison());
  int warps = (threads + kWarp - 1) / kWarp;
  for (int i = 0; i < threads; ++i) {
    fibers[i].state = READY;
    fibers[i].copies.clear();
  }
  for (;;) {
    bool moved = false;
    for (int i = 0; i < warps; ++i) moved |= run_warp(descending ? warps - 1 - i : i);
    if (open_barrier()) continue;
    if (moved) continue;
    bool ended = true;
    for (int i = 0; i < threads; ++i) ended = ended && fibers[i].state == DONE;
    if (ended) return;
    fail_stuck();
  }
}

void run_grid() {
  unsigned x = gridDim.x, y = gridDim.y;
  uint64_t blocks = uint64_t(x) * y * gridDim.z;
  for (uint64_t i = 0; i < blocks; ++i) {
    uint64_t b = descending ? blocks - 1 - i : i;
    blockIdx = {unsigned(b % x), unsigned(b / x % y), unsigned(b / x / y)};
    run_block();
  }
}

void on_signal(int number, siginfo_t *info, void *) {
  report->code = number == SIGFPE ? SIM_DIVIDE : number == SIGILL || number == SIGTRAP ? SIM_TRAP : SIM_MEMORY;
  report->address = number == SIGSEGV || number == SIGBUS ? uint64_t(info->si_addr) : 0;
  siglongjmp(failed, report->code);
}

struct Signals {
  struct sigaction before[5];
  stack_t stack_before;
  static const int *numbers() {
    static const int all[5] = {SIGSEGV, SIGBUS, SIGILL, SIGTRAP, SIGFPE};
    return all;
  }
  Signals() {
    static char room[64 << 10];
    stack_t stack = {};
    stack.ss_sp = room;
    stack.ss_size = sizeof room;
    sigaltstack(&stack, &stack_before);
    struct sigaction action = {};
    action.sa_sigaction = on_signal;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK;
    for (int i = 0; i < 5; ++i) sigaction(numbers()[i], &action, before + i);
  }
  ~Signals() {
    for (int i = 0; i < 5; ++i) sigaction(numbers()[i], before + i, nullptr);
    sigaltstack(&stack_before, nullptr);
  }
};

void place_threads(const int *sizes) {
  gridDim = {unsigned(sizes[0]), unsigned(sizes[1]), unsigned(sizes[2])};
  blockDim = {unsigned(sizes[3]), unsigned(sizes[4]), unsigned(sizes[5])};
  threads = sizes[3] * sizes[4] * sizes[5];
  for (int i = 0; i < threads; ++i) {
    unsigned u = i;
    fibers[i].started = false;
    fibers[i].index = {u % blockDim.x, u / blockDim.x % blockDim.y, u / blockDim.x / blockDim.y};
  }
  if (stacks) return;
  size_t room = kThreads * (kStack + kPage);
  stacks = static_cast<char *>(
      mmap(nullptr, room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
  for (int i = 0; i < kThreads; ++i) mprotect(stacks + i * (kStack + kPage), kPage, PROT_NONE);
}

void describe_place() {
  report->block[0] = blockIdx.x, report->block[1] = blockIdx.y, report->block[2] = blockIdx.z;
  if (!current) return;
  report->thread[0] = current->index.x;
  report->thread[1] = current->index.y;
  report->thread[2] = current->index.z;
  char *fault = reinterpret_cast<char *>(report->address);
  if (report->code != SIM_MEMORY || report->text[0]) return;
  if (fault >= stacks && fault < stacks + kThreads * (kStack + kPage))
    snprintf(report->text, sizeof report->text, "more than %zu bytes of local memory", kStack);
  else
    memory.describe(fault, report->text, sizeof report->text);
}

}  // namespace

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

void sim_warp(sim_collective run, void *argument, unsigned mask, int line) {
  if (!(mask >> sim_lane() & 1)) sim_fail("a lane is not in the mask it gives");
  current->run = run;
  current->argument = argument;
  current->mask = mask;
  wait(AT_WARP, line);
}

unsigned sim_active(int line) {
  wait(AT_ACTIVE, line);
  return current->mask;
}

int sim_lane(void) { return int(current - fibers) % kWarp; }

void sim_barrier(int id, int count, int line) {
  current->barrier = id;
  current->count = count;
  wait(AT_BARRIER, line);
}

void sim_fail(const char *why) {
  report->code = SIM_FAILED;
  snprintf(report->text, sizeof report->text, "%s", why);
  siglongjmp(failed, SIM_FAILED);
}

void *sim_shared(int slot, const char *function, const char *name, size_t bytes, size_t alignment) {
  void *found = memory.shared(slot, function, name, bytes, alignment, sim_poison());
  if (!found) sim_fail("more shared memory than any chip has");
  return found;
}

void *sim_dynamic(void) { return memory.dynamic(); }
unsigned sim_shared_address(const void *pointer) { return memory.offset(pointer); }
void *sim_shared_pointer(unsigned address) { return memory.at(address); }

void sim_copy(void *to, const void *from, int bytes, int source_bytes) {
  Copy copy = {to, from, bytes, source_bytes};
  if (descending)
    current->copies.add(copy);
  else
    copy.run();
}

void sim_copy_commit(void) { current->copies.commit(); }
void sim_copy_wait(int groups) { current->copies.finish(groups); }
unsigned sim_poison(void) { return descending ? 0xA5A5A5A5u : 0x5A5A5A5Au; }

void *sim_allocate(size_t bytes) { return memory.allocate(bytes); }
void sim_release(void *address) { memory.release(address); }

int sim_run(sim_kernel call, void **given, const int *sizes, int shared_bytes, int backwards,
            sim_report *into) {
  kernel = call, arguments = given, report = into, descending = backwards, current = nullptr;
  memset(report, 0, sizeof *report);
  place_threads(sizes);
  memory.start(shared_bytes, sim_poison());
  Signals signals;
  if (!sigsetjmp(failed, 1)) {
    run_grid();
    if (memory.overrun(sim_poison(), report->text, sizeof report->text)) report->code = SIM_OVERRUN;
  }
  report->shared_bytes = memory.static_bytes();
  describe_place();
  return report->code;
}
