/* What the AES engine does beside AES, over every byte that goes to DRAM or comes from it.
 *
 * Why it is compiled: in NumPy the XOR is two passes through memory and two calls, here it is one of each; and
 * the tweaks of XTS follow one from another, which no array operation does.
 *
 * Nothing needs to be aligned.
 */

#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the numbers of IEEE Std 1619 are little-endian, and here they are taken as they lie"
#endif

#define BLOCKS_OF_A_PAGE 256
#define BLOCKS_OF_A_LINE 4

typedef uint64_t block __attribute__((vector_size(16), aligned(1), may_alias));

/* out = data ^ tweaks ^ constant, block by block; `out` may be `data`.
 *
 * What lies a page ahead is asked for in good time: the processor's own prefetcher stops at the end of a page,
 * and a pass that computes so little waits for memory.  Asking for what is not there does nothing.
 */
void tweaked_xor(void *out, const void *data, const void *tweaks, const void *constant, size_t length)
{
    const block shared = *(const block *)constant;
    const block *from = data, *tweak = tweaks;
    block *to = out;

    size_t blocks = length / sizeof(block), i = 0;

    for (; i + BLOCKS_OF_A_LINE <= blocks; i += BLOCKS_OF_A_LINE) {
        __builtin_prefetch(from + i + BLOCKS_OF_A_PAGE);
        for (size_t j = i; j < i + BLOCKS_OF_A_LINE; j++)
            to[j] = from[j] ^ tweak[j] ^ shared;
    }
    for (; i < blocks; i++)
        to[i] = from[i] ^ tweak[i] ^ shared;
}

/* The tweaks of whole pages from the first one of each: T, T*x, T*x^2 ... modulo x^128 + x^7 + x^2 + x + 1
 * (IEEE Std 1619, 5.2): the bit that falls out at the top comes back in at the bottom.
 */
void xts_tweaks(void *out, const void *first, size_t pages)
{
    const uint64_t *t = first;
    char *to = out;

    for (size_t page = 0; page < pages; page++) {
        uint64_t now[2];
        memcpy(now, t + 2 * page, sizeof(now));
        for (int j = 0; j < BLOCKS_OF_A_PAGE; j++, to += sizeof(now)) {
            memcpy(to, now, sizeof(now));
            const uint64_t fallen_out = now[1] >> 63;
            now[1] = now[1] << 1 | now[0] >> 63;
            now[0] = now[0] << 1 ^ fallen_out * 0x87;
        }
    }
}
