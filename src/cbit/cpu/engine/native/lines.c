/* Borrowed pages, many at a time: which lines were stored to, and the code that was made of them. */
#include "stubs.h"

static uint64_t mix(uint64_t a, uint64_t b)
{
    __uint128_t product = (__uint128_t)a * b;
    return (uint64_t)product ^ (uint64_t)(product >> 64);
}

static uint64_t digest(const uint64_t *line, const uint64_t *seed)
{
    uint64_t sum = seed[0];
    for (int word = 0; word < LINE / 8; word += 2)
        sum = mix(sum ^ line[word] ^ seed[word + 1], line[word + 1] ^ seed[word + 2]) ^ (sum << 1 | sum >> 63);
    return sum;
}

/* Remember pages by a 64-bit digest of each line, under a secret seed of 9 words: no second plaintext is kept.
 * A slot is an offset in the pool; its digests lie at the same place in theirs. */
void cbit_remember(const char *pool, const uint64_t *slots, uint64_t count, uint64_t *digests, const uint64_t *seed)
{
    for (uint64_t index = 0; index < count; index++) {
        const uint64_t *page = (const uint64_t *)(pool + slots[index]);
        uint64_t *mine = digests + slots[index] / PAGE * LINES;
        for (int line = 0; line < LINES; line++)
            mine[line] = digest(page + line * LINE / 8, seed);
    }
}

/* For each slot one bit for each line that differs from what was remembered, in the place of the slot's number. */
void cbit_changed(const char *pool, uint64_t *slots, uint64_t count, const uint64_t *digests, const uint64_t *seed)
{
    for (uint64_t index = 0; index < count; index++) {
        const uint64_t *page = (const uint64_t *)(pool + slots[index]);
        const uint64_t *mine = digests + slots[index] / PAGE * LINES;
        uint64_t changed = 0;
        for (int line = 0; line < LINES; line++)
            changed |= (uint64_t)(digest(page + line * LINE / 8, seed) != mine[line]) << line;
        slots[index] = changed;
    }
}

/* Drop the code that was translated from slots; `ram` is the library's number of the first. */
void cbit_drop_code(struct engine *e, const uint64_t *slots, uint64_t count, uint64_t ram)
{
    for (uint64_t index = 0; index < count; index++)
        call.tb_invalidate_phys_range(e->uc, ram + slots[index], ram + slots[index] + PAGE);
}

/* Let go of slots: no translation, no code, no use is left of them.  First the leaves that exist for one fill go, so
 * that the caller finds the tables as they are otherwise.  A slot that is remembered has bit 0 set; the answer, in the
 * place of each, is as that of cbit_changed, and 0 for one that is not. */
void cbit_let_go(struct engine *e, uint64_t *slots, uint64_t count, uint64_t ram, const uint64_t *digests,
                 const uint64_t *seed)
{
    const struct area *pool = &e->area[POOL_AREA];
    cbit_undo_shots(e);
    call.tlb_flush(e->cs);
    for (uint64_t index = 0; index < count; index++) {
        uint64_t watched = slots[index] & 1, *slot = &slots[index];
        *slot &= ~1ull;
        cbit_drop_code(e, slot, 1, ram);
        e->used[*slot / PAGE] = 0;
        if (watched)
            cbit_changed(pool->memory, slot, 1, digests, seed);
        else
            *slot = 0;
    }
}
