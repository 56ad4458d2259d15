/* What an x86 CPU and its system offer. By hand, because not every compiler brings the library behind
 * __builtin_cpu_supports, and that has no names for some features. */
#ifndef PARED_CPU_X86_H
#define PARED_CPU_X86_H

#include <cpuid.h>

/* Register states that the system saves: bits of XCR0. */
enum { STATE_NONE = 0, STATE_AVX = 0x6, STATE_AVX512 = 0xe6 };
enum { EAX, EBX, ECX, EDX };

static unsigned saved_states(void) {
    unsigned low, high;
    __asm__("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
    (void)high;
    return low;
}

static int cpu_has(unsigned leaf, unsigned subleaf, int word, int bit, unsigned states) {
    unsigned words[4];
    if (states) {
        /* xgetbv itself is there when the system uses it: OSXSAVE. */
        if (!__get_cpuid(1, &words[EAX], &words[EBX], &words[ECX], &words[EDX])) return 0;
        if (!(words[ECX] >> 27 & 1) || (saved_states() & states) != states) return 0;
    }
    if (!__get_cpuid_count(leaf, subleaf, &words[EAX], &words[EBX], &words[ECX], &words[EDX])) return 0;
    return words[word] >> bit & 1;
}

#endif
