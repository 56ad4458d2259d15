// Memory with pages around it that cannot be touched, and copies that happen late.
#pragma once
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static const size_t kPage = 4096;

struct Copy {
  void *to;
  const void *from;
  int bytes, source_bytes;
  void run() const {
    memcpy(to, from, source_bytes);
    memset(static_cast<char *>(to) + source_bytes, 0, bytes - source_bytes);
  }
};

// A thread's copies in flight, oldest first, each with the group it was committed in.
struct Copies {
  Copy *items;
  int *groups;
  int count, room, group;

  void clear() { count = group = 0; }
  void add(const Copy &copy) {
    if (count == room) {
      room = room ? 2 * room : 64;
      items = static_cast<Copy *>(realloc(items, room * sizeof *items));
      groups = static_cast<int *>(realloc(groups, room * sizeof *groups));
    }
    groups[count] = group;
    items[count++] = copy;
  }
  void commit() { ++group; }
  // All but the newest `left` groups; nothing that is not committed, unless left is 0 and none will be.
  void finish(int left) {
    int done = 0;
    while (done < count && groups[done] < group - left) items[done++].run();
    memmove(items, items + done, (count - done) * sizeof *items);
    memmove(groups, groups + done, (count - done) * sizeof *groups);
    count -= done;
  }
};

class Memory {
  static const int kBuffers = 4096, kSlots = 256;
  static const size_t kWindow = 16 << 20;  // shared memory's addresses
  struct Buffer {
    char *map, *data;
    size_t mapped, bytes;
  } buffers[kBuffers];
  struct Slot {
    int id;
    const char *function, *name;
    char *data;
    size_t bytes, alignment;
  } slots[kSlots];
  int buffer_count, slot_count;
  char *window, *free_at, *dynamic_at;
  size_t dynamic_bytes;

  static size_t up(size_t n, size_t to) { return (n + to - 1) / to * to; }

  // Ends at a page's end, as far as the alignment lets it.
  char *carve(size_t bytes, size_t alignment) {
    size_t pages = up(up(bytes, alignment), kPage);
    if (free_at + pages + kPage > window + kWindow) return nullptr;
    mprotect(free_at, pages, PROT_READ | PROT_WRITE);
    char *data = free_at + pages - up(bytes, alignment);
    free_at += pages + kPage;
    return data;
  }
  static void fill(char *from, size_t bytes, unsigned poison) { memset(from, poison & 0xFF, bytes); }
  static size_t edge(const Buffer &b) { return size_t(b.data - (b.map + kPage)); }
  static char *end(const Buffer &b) { return b.map + b.mapped - kPage; }

 public:
  void start(int shared_bytes, unsigned poison) {
    if (!window)
      window = static_cast<char *>(
          mmap(nullptr, kWindow, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    mprotect(window, kWindow, PROT_NONE);
    free_at = window + kPage;
    slot_count = 0;
    dynamic_bytes = shared_bytes;
    dynamic_at = shared_bytes ? carve(shared_bytes, 128) : free_at;
    for (int i = 0; i < buffer_count; ++i) {
      fill(buffers[i].map + kPage, edge(buffers[i]), poison);
      fill(buffers[i].data + buffers[i].bytes, end(buffers[i]) - buffers[i].data - buffers[i].bytes, poison);
    }
  }
  void start_block(unsigned poison) {
    fill(dynamic_at, dynamic_bytes, poison);
    for (int i = 0; i < slot_count; ++i) fill(slots[i].data, slots[i].bytes, poison);
  }
  void *shared(int id, const char *function, const char *name, size_t bytes, size_t alignment, unsigned poison) {
    for (int i = 0; i < slot_count; ++i)
      if (slots[i].id == id && slots[i].function == function) return slots[i].data;
    char *data = slot_count < kSlots ? carve(bytes, alignment) : nullptr;
    if (!data) return nullptr;
    fill(data, bytes, poison);
    slots[slot_count++] = {id, function, name, data, bytes, alignment};
    return data;
  }
  void *dynamic() { return dynamic_at; }
  unsigned offset(const void *pointer) { return unsigned(static_cast<const char *>(pointer) - window); }
  void *at(unsigned address) { return window + address; }
  int static_bytes() const {
    size_t sum = 0;
    for (int i = 0; i < slot_count; ++i) sum = up(sum, slots[i].alignment) + slots[i].bytes;
    return int(sum);
  }

  void *allocate(size_t bytes) {
    if (buffer_count == kBuffers) return nullptr;
    size_t mapped = up(up(bytes, 32) + 1, kPage) + 2 * kPage;
    void *map = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (map == MAP_FAILED) return nullptr;
    Buffer &b = buffers[buffer_count++];
    b.map = static_cast<char *>(map);
    b.mapped = mapped, b.bytes = bytes;
    b.data = end(b) - up(bytes, 32);
    mprotect(b.map, kPage, PROT_NONE);
    mprotect(end(b), kPage, PROT_NONE);
    return b.data;
  }
  void release(void *address) {
    for (int i = 0; i < buffer_count; ++i) {
      if (buffers[i].data != address) continue;
      munmap(buffers[i].map, buffers[i].mapped);
      buffers[i] = buffers[--buffer_count];
      return;
    }
  }
  // Tells whether something was written into the room around a buffer.
  bool overrun(unsigned poison, char *text, size_t room) const {
    for (int i = 0; i < buffer_count; ++i)
      for (char *p = buffers[i].map + kPage; p < end(buffers[i]); ++p) {
        if (p == buffers[i].data) p += buffers[i].bytes;
        if (p >= end(buffers[i]) || static_cast<unsigned char>(*p) == (poison & 0xFF)) continue;
        describe(p, text, room);
        return true;
      }
    return false;
  }
  // Says which array an address is next to.
  void describe(const char *address, char *text, size_t room) const {
    for (int i = 0; i < buffer_count; ++i) {
      const Buffer &b = buffers[i];
      if (address < b.map || address >= b.map + b.mapped) continue;
      snprintf(text, room, "byte %td of a buffer of %zu bytes at 0x%zx", address - b.data, b.bytes,
               reinterpret_cast<size_t>(b.data));
      return;
    }
    long best = -1, distance = 1 << 30;
    for (int i = 0; i < slot_count; ++i) {
      long away = labs(address - slots[i].data);
      if (address < window || address >= window + kWindow || away >= distance) continue;
      best = i, distance = away;
    }
    if (best >= 0)
      snprintf(text, room, "byte %td of shared array %s of %zu bytes", address - slots[best].data,
               slots[best].name, slots[best].bytes);
    else if (address >= window && address < window + kWindow)
      snprintf(text, room, "byte %td of dynamic shared memory of %zu bytes", address - dynamic_at, dynamic_bytes);
    else
      snprintf(text, room, "address 0x%zx, where nothing is", reinterpret_cast<size_t>(address));
  }
};

static Memory memory;
