/* The machine's clock: the number of blocks that guests executed.  The same program gives the same time.
 *
 * One turn of a repeated string instruction is a block, to QEMU and to the clock.  A kernel that clears 64 MiB byte by
 * byte takes 67 million of them, so what such an instruction does within a page is done here at once; the clock goes
 * on as if each turn had been a block of its own.
 */
#include "stubs.h"

#include <string.h>
#include <sys/time.h>

enum { RCX = 1, RSI = 6, RDI = 7 };
enum { STRING = 1, MOVE = 2, WORTH_IT = 32 };

/* What a block that runs again and again is, if it is REP STOS or REP MOVS of bytes or quadwords in 64-bit code, with
 * no other prefix: STRING, MOVE for the latter, and 16 times the size of an element; otherwise 0. */
static uint64_t decode(struct engine *e, uint64_t at_rip)
{
    enum { REPEAT = 0xF3, REX_W = 0x48, MOVSB = 0xA4, MOVSQ = 0xA5, STOSB = 0xAA, STOSQ = 0xAB };
    if (!(ENV(uint32_t, e, hflags) & HF_CS64) || call.cpu_ldub_code(e->env, at_rip) != REPEAT)
        return 0;
    uint8_t opcode = call.cpu_ldub_code(e->env, at_rip + 1);
    int wide = opcode == REX_W;
    if (wide)
        opcode = call.cpu_ldub_code(e->env, at_rip + 2);
    if (opcode == (wide ? MOVSQ : MOVSB))
        return STRING | MOVE | (wide ? 8 : 1) << 4;
    return opcode == (wide ? STOSQ : STOSB) ? STRING | (wide ? 8 : 1) << 4 : 0;
}

/* Whether the block that begins runs for the second time in a row as a string instruction, with many turns to come.
 * `block` tells it from others; what is remembered of it is a hint, because another may have taken its place. */
static uint64_t string_to_do(struct engine *e, uint64_t block, uintptr_t from)
{
    struct loop *loop = &e->again.loop[block / 16 % LOOPS];
    if (FIELD(uint64_t, e->env, 8 * RCX) <= WORTH_IT || (loop->block == block && !loop->string))
        return 0;
    if (e->again.pause && e->again.paused == block) {
        e->again.pause--;
        return 0;
    }
    e->again.paused = block;
    if (from)
        call.cpu_restore_state(e->cs, from, 0);    /* RIP */
    loop->block = block;
    return loop->string = decode(e, from ? ENV(uint64_t, e, rip) : block);
}

static uint64_t least(uint64_t a, uint64_t b)
{
    return a < b ? a : b;
}

/* Where a page lies that the last turn used too: its translation is there, so nothing can fault here. */
static char *same_page(struct engine *e, uint64_t address, int access)
{
    enum { USER = 1, WITHOUT_SMAP = 2, WITH_SMAP = 0, HF_SMAP = 1 << 23, AC = 1 << 18 };
    uint32_t hflags = ENV(uint32_t, e, hflags);
    int smap = (hflags & HF_SMAP) && !(call.helper_read_eflags(e->env) & AC);
    int mmu = (hflags & HF_CPL) == 3 ? USER : smap ? WITH_SMAP : WITHOUT_SMAP;
    return call.tlb_vaddr_to_host(e->env, address, access, mmu);
}

/* Do all turns but the last that stay in their pages and before the deadline.  Where that cannot be done it is not
 * tried again for a page's worth of turns. */
static void do_string(struct engine *e, uint64_t string)
{
    enum { BACKWARDS = 1 << 10 };
    uint64_t *registers = e->env, size = string >> 4, to = registers[RDI], from = registers[RSI];
    uint64_t turns = least(registers[RCX] - 1, (PAGE - to % PAGE) / size);
    if (string & MOVE)
        turns = least(turns, (PAGE - from % PAGE) / size);
    turns = least(turns, e->deadline - e->blocks);
    if (!turns || to % PAGE < size || ((string & MOVE) && from % PAGE < size))
        return;                                    /* the last turn was in another page */
    e->again.pause = PAGE / size;
    if (call.helper_read_eflags(e->env) & BACKWARDS)
        return;
    char *target = same_page(e, to, STORE);
    if (!target)
        return;                                    /* a page of code */
    if (string & MOVE) {
        const char *source = same_page(e, from, LOAD);
        if (!source || (size_t)(target - source) < turns * size || (size_t)(source - target) < turns * size)
            return;                                /* turn by turn, an overlap repeats itself */
        memcpy(target, source, turns * size);
        registers[RSI] += turns * size;
    } else if (size == 1) {
        memset(target, (int)registers[0], turns);
    } else {
        for (uint64_t turn = 0; turn < turns; turn++)
            memcpy(target + turn * size, &registers[0], size);
    }
    registers[RDI] += turns * size;
    registers[RCX] -= turns;
    e->blocks += turns;
    e->again.turns += turns;
    e->again.pause = 0;
}

/* A block begins. */
static void count(struct engine *e, uint64_t block, uintptr_t from)
{
    uint64_t string = 0;
    if (block == e->again.last)
        string = string_to_do(e, block, from);
    e->again.last = block;
    e->keep_tlb = 0;
    if (e->blocks >= e->deadline) {
        call.uc_emu_stop(e->uc);                   /* this block is not executed any more */
        return;
    }
    e->blocks++;
    if (string)
        do_string(e, string);
}

/* For libraries whose blocks do not begin with the function below. */
void hook_block(void *uc, uint64_t address, uint32_t size, void *user)
{
    struct engine *e = user;
    (void)uc, (void)size;
    if (in_guest(e) && *e->exit_word >= 0)
        count(e, address, 0);
}

static __attribute__((noinline)) void look_at_block(void *uc, uint32_t not_now, uintptr_t from)
{
    struct engine *e = current && current->uc == uc ? current : NULL;
    void *cs = FIELD(void *, uc, at.uc_cpu);
    int32_t *exit_word = &FIELD(int32_t, cs, at.cs_exit_word);
    if (e && *exit_word >= 0 && in_guest(e))
        count(e, from, from);
    if (*exit_word >= 0)
        return;
    if (!not_now)
        call.cpu_restore_state(cs, from, 1);       /* the original would look at who called it */
    call.helper_check_exit_request(uc, not_now);
}

/* Why: it begins every block, to ask whether to stop; with the clock in it no block needs a hook as well.  Most blocks
 * are only counted. */
void stub_helper_check_exit_request(void *uc, uint32_t not_now)
{
    uintptr_t from = (uintptr_t)__builtin_return_address(0);
    struct engine *e = current;
    if (e && e->uc == uc && *e->exit_word >= 0 && (*e->hflags & HF_GUEST) && from != e->again.last
        && e->blocks < e->deadline) {
        e->again.last = from;
        e->keep_tlb = 0;
        e->blocks++;
    } else {
        look_at_block(uc, not_now, from);
    }
}

/* Why: QEMU sizes its TLB by what was used of it in the last tenth of a second, and each translation that is made
 * anew asks for a page again.  By the machine's clock, two runs with one seed fill and evict the same pages. */
int stub_gettimeofday(struct timeval *now, void *zone)
{
    enum { BLOCKS_PER_US = 100 };                  /* as the hypervisor's clock: 10 ns a block */
    static __thread uint64_t us;
    (void)zone;
    if (current)
        us = current->blocks / BLOCKS_PER_US;
    now->tv_sec = us / 1000000;
    now->tv_usec = us % 1000000;
    return 0;
}
