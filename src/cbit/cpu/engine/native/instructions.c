/* Instructions that Unicorn leaves to hooks or to the computer it runs on: RDTSC, RDRAND, SYSCALL, IN and OUT; and
 * those that it refuses where a processor does not. */
#include "stubs.h"

/* Why: Unicorn reads the clock of the computer it runs on; two runs would differ. */
uint64_t stub_cpu_get_tsc(void *env)
{
    (void)env;
    return current ? current->blocks * current->tsc_per_block : 0;
}

/* Why: Unicorn asks the computer it runs on; randomness is the machine's. */
uint64_t stub_helper_rdrand(void *env)
{
    enum { CARRY = 1 };
    struct engine *e = current;
    if (!e || (!e->random_left && !e->on_entropy())) {
        FIELD(uint64_t, env, at.cc_src) = 0;
        return 0;
    }
    FIELD(uint64_t, env, at.cc_src) = CARRY;
    return e->random[--e->random_left];
}

/* ---- port I/O */

enum { IO_IN = 1 << 0, IO_STRING = 1 << 2, IO_REPEAT = 1 << 3, IO_SIZE = 4, IO_ADDRESS_SIZE = 7, IO_SEGMENT = 10 };

static int segment_of_prefix(uint8_t byte)
{
    static const uint8_t prefixes[] = { 0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65 };
    for (int segment = 0; segment < 6; segment++)
        if (prefixes[segment] == byte)
            return segment;
    return -1;
}

/* What an I/O instruction says of itself, as EXITINFO1 has it; its length goes to `length`. */
static uint64_t describe_io(struct engine *e, uint64_t *length)
{
    enum { ADDRESS_SIZE_PREFIX = 0x67, REPEAT = 0xF3, REPEAT_NE = 0xF2, LOCK = 0xF0, OPERAND_SIZE_PREFIX = 0x66 };
    int64_t long_mode = ENV(uint32_t, e, hflags) & HF_CS64, wide = ENV(uint32_t, e, hflags) & HF_CS32;
    uint64_t start = ENV(uint64_t, e, rip);
    uint64_t base = long_mode ? 0 : FIELD(uint64_t, e->env, at.segments + 24 + 8);   /* CS */
    int segment = 3, found, other_size = 0;
    uint64_t said = 0;
    for (*length = 0; *length < 15;) {
        uint8_t byte = call.cpu_ldub_code(e->env, base + start + (*length)++);
        if ((found = segment_of_prefix(byte)) >= 0) {
            segment = found;
        } else if (byte == REPEAT || byte == REPEAT_NE) {
            said |= IO_REPEAT;
        } else if (byte == ADDRESS_SIZE_PREFIX) {
            other_size = 1;
        } else if (byte == OPERAND_SIZE_PREFIX || byte == LOCK || (long_mode && (byte & 0xF0) == 0x40)) {
            continue;
        } else {
            if ((byte & 0xFC) == 0x6C)                      /* INS, OUTS */
                said |= IO_STRING | (uint64_t)(byte & 2 ? segment : 0) << IO_SEGMENT;
            else if ((byte & 0xFC) == 0xE4)                 /* the port is in the instruction */
                ++*length;
            break;
        }
    }
    int size = long_mode ? (other_size ? 1 : 2) : (wide ? 1 : 0) ^ other_size;
    return (said & IO_STRING ? said : 0) | 1ull << (IO_ADDRESS_SIZE + size);
}

/* Leave the guest if the hypervisor wants to see this port; `log_size` 0, 1, 2 for 8, 16, 32 bits. */
static void check_io(void *env, uint32_t port, int log_size, uint32_t direction, uintptr_t from)
{
    enum { PROTECTED = 1, IOPL_SHIFT = 12, IOPL = 3, VM86 = 1 << 17, EXIT_IOIO = 0x7B };
    struct engine *e = current;
    if (!e || !in_guest(e))
        return;
    call.cpu_restore_state(e->cs, from, 1);
    port &= 0xFFFF;
    uint64_t flags = call.helper_read_eflags(env);
    int privileged = (ENV(uint32_t, e, hflags) & HF_CPL) <= (flags >> IOPL_SHIFT & IOPL) && !(flags & VM86);
    if ((ENV(uint64_t, e, cr0) & PROTECTED) && !privileged) {
        void (*const check[])(void *, uint32_t) = {
            call.helper_check_iob, call.helper_check_iow, call.helper_check_iol
        };
        check[log_size](env, port);                /* the TSS decides; a refusal leaves by longjmp */
    }
    uint32_t watched = FIELD(uint16_t, e->iopm, port / 8) >> port % 8 & ((1u << (1 << log_size)) - 1);
    if (!watched)
        return;
    uint64_t length, said = describe_io(e, &length);
    FIELD(uint64_t, e->vmcb, VMCB_EXIT_INFO_2) = ENV(uint64_t, e, rip) + length;
    stub_cpu_vmexit(env, EXIT_IOIO, said | direction | 1u << (IO_SIZE + log_size) | (uint64_t)port << 16, 0);
}

#define FROM ((uintptr_t)__builtin_return_address(0))

/* Why: Unicorn dropped QEMU's checks of I/O privilege and of the I/O permission map, and calls hooks instead.
 * MODEL CHOICE: no device answers at a port that the hypervisor does not watch. */
void stub_helper_outb(void *env, uint32_t port, uint32_t data)
{
    (void)data;
    check_io(env, port, 0, 0, FROM);
}

/* Why: as the 8-bit one. */
void stub_helper_outw(void *env, uint32_t port, uint32_t data)
{
    (void)data;
    check_io(env, port, 1, 0, FROM);
}

/* Why: as the 8-bit one. */
void stub_helper_outl(void *env, uint32_t port, uint32_t data)
{
    (void)data;
    check_io(env, port, 2, 0, FROM);
}

/* Why: as the 8-bit OUT. */
uint64_t stub_helper_inb(void *env, uint32_t port)
{
    check_io(env, port, 0, IO_IN, FROM);
    return 0xFF;
}

/* Why: as the 8-bit OUT. */
uint64_t stub_helper_inw(void *env, uint32_t port)
{
    check_io(env, port, 1, IO_IN, FROM);
    return 0xFFFF;
}

/* Why: as the 8-bit OUT. */
uint64_t stub_helper_inl(void *env, uint32_t port)
{
    check_io(env, port, 2, IO_IN, FROM);
    return 0xFFFFFFFF;
}

/* ---- instructions that are invalid to QEMU */

/* The first byte of the instruction at RIP that is no prefix; where the next one is goes to `from`. */
static uint8_t opcode(struct engine *e, uint64_t *from)
{
    enum { OPERAND_SIZE = 0x66, ADDRESS_SIZE = 0x67, LOCK = 0xF0, REPEAT_NE = 0xF2, REPEAT = 0xF3 };
    *from = ENV(uint64_t, e, rip);
    if (!(ENV(uint32_t, e, hflags) & HF_CS64))
        *from += FIELD(uint64_t, e->env, at.segments + 24 + 8);   /* CS */
    uint8_t byte = call.cpu_ldub_code(e->env, (*from)++);
    for (int left = 14; left && (segment_of_prefix(byte) >= 0 || byte == OPERAND_SIZE || byte == ADDRESS_SIZE ||
                                 byte == LOCK || byte == REPEAT_NE || byte == REPEAT || (byte & 0xF0) == 0x40); left--)
        byte = call.cpu_ldub_code(e->env, (*from)++);
    return byte;
}

/* Why: Python takes a thousand times as long to see that an instruction is none that it does; a guest that executes
 * nothing but invalid ones would take minutes for a turn. */
int may_flush_line(struct engine *e)
{
    uint64_t from;
    return opcode(e, &from) == 0x0F && call.cpu_ldub_code(e->env, from) == 0xAE;
}

/* Whether an instruction is among 0F 38 F0 ... F7, with a VEX prefix or without: MOVBE, CRC32, ADCX, and BMI's. */
static int uses_general_registers_only(struct engine *e)
{
    enum { VEX = 0xC4, MAP = 0x1F, MAP_0F38 = 2 };
    uint64_t from;
    uint8_t byte = opcode(e, &from);
    if (byte == VEX) {
        if ((call.cpu_ldub_code(e->env, from) & MAP) != MAP_0F38)
            return 0;
        from += 2;
    } else if (byte != 0x0F || call.cpu_ldub_code(e->env, from++) != 0x38) {
        return 0;
    }
    return (call.cpu_ldub_code(e->env, from) & 0xF8) == 0xF0;
}

/* Why: QEMU has these in its table of SSE instructions, and refuses those with 66 while the guest's CR4.OSFXSR is
 * clear.  Linux's decompressor shifts with SHLX before it sets that bit.  They are let through as if it were set;
 * SSE too, then, until CR4 is loaded again: LIMITATIONS says so. */
int let_general_registers_through(struct engine *e)
{
    if (*e->hflags & HF_OSFXSR || !uses_general_registers_only(e))
        return 0;
    *e->hflags |= HF_OSFXSR;
    return 1;
}

static void flat_segment(void *env, int index, uint32_t selector, uint32_t flags)
{
    enum { SIZE = 24, BASE = 8, LIMIT = 16, FLAGS = 20 };
    char *segment = (char *)env + at.segments + SIZE * index;
    FIELD(uint32_t, segment, 0) = selector;
    FIELD(uint64_t, segment, BASE) = 0;
    FIELD(uint32_t, segment, LIMIT) = 0xFFFFFFFF;
    FIELD(uint32_t, segment, FLAGS) = flags;
}

/* Why: Unicorn's SYSCALL calls hooks and does nothing else. */
void stub_helper_syscall(void *env, int length)
{
    enum { RCX = 1, R11 = 11, CS = 1, SS = 2, SCE = 1, RF = 1 << 16 };
    uint64_t *registers = env;                     /* the register file begins with RAX … R15 */
    uint32_t *hflags = &FIELD(uint32_t, env, at.hflags);
    if (!(FIELD(uint64_t, env, at.efer) & SCE) || !(*hflags & HF_LMA)) {
        call.raise_exception(env, INVALID_OPCODE);             /* leaves by longjmp */
        return;
    }
    uint32_t selector = FIELD(uint64_t, env, at.star) >> 32 & 0xFFFC;
    uint64_t flags = call.helper_read_eflags(env);
    registers[RCX] = FIELD(uint64_t, env, at.rip) + (uint64_t)length;
    registers[R11] = flags & ~(uint64_t)RF;
    FIELD(uint64_t, env, at.rip) = FIELD(uint64_t, env, *hflags & HF_CS64 ? at.lstar : at.cstar);
    flags &= ~(FIELD(uint64_t, env, at.sfmask) | RF);
    call.helper_write_eflags(env, flags, 0xFFFFFFFF);
    flat_segment(env, CS, selector, 0x00A09B00);   /* 64-bit code, present, ring 0 */
    flat_segment(env, SS, (selector + 8) & 0xFFFF, 0x00C09300);
    *hflags = (*hflags & ~(uint32_t)(HF_CPL | HF_ADDSEG)) | HF_CS32 | HF_SS32 | HF_CS64;
}
