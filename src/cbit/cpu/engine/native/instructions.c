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

/* ---- what an instruction is, and where the next one begins */

enum { CODE_SEGMENT = 1, DATA_SEGMENT = 3 };

static int segment_of_prefix(uint8_t byte)
{
    static const uint8_t prefixes[] = { 0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65 };
    for (int segment = 0; segment < 6; segment++)
        if (prefixes[segment] == byte)
            return segment;
    return -1;
}

/* An instruction up to its opcode. */
struct head {
    uint64_t begin, next;                          /* linear addresses: of it, and of what follows the opcode */
    int segment, repeats, other_size;              /* what its prefixes say; the last: of addresses */
    uint8_t opcode;
};

static uint8_t byte_of(struct engine *e, struct head *head)
{
    return call.cpu_ldub_code(e->env, head->next++);
}

/* Read the instruction at RIP, which the guest executes just now. */
static struct head read_head(struct engine *e)
{
    enum { OPERAND_SIZE = 0x66, ADDRESS_SIZE = 0x67, LOCK = 0xF0, REPEAT_NE = 0xF2, REPEAT = 0xF3, LONGEST = 15 };
    struct head head = { .begin = ENV(uint64_t, e, rip), .segment = DATA_SEGMENT };
    int found, rex = (ENV(uint32_t, e, hflags) & HF_CS64) != 0;
    if (!rex)
        head.begin += FIELD(uint64_t, e->env, at.segments + 24 * CODE_SEGMENT + 8);
    for (head.next = head.begin; head.next < head.begin + LONGEST;) {
        head.opcode = byte_of(e, &head);
        if ((found = segment_of_prefix(head.opcode)) >= 0)
            head.segment = found;
        else if (head.opcode == REPEAT || head.opcode == REPEAT_NE)
            head.repeats = 1;
        else if (head.opcode == ADDRESS_SIZE)
            head.other_size = 1;
        else if (head.opcode != OPERAND_SIZE && head.opcode != LOCK && !(rex && (head.opcode & 0xF0) == 0x40))
            break;
    }
    return head;
}

/* Bytes of an address: 16 << the answer bits wide. */
static int address_size(const struct engine *e, const struct head *head)
{
    if (ENV(uint32_t, e, hflags) & HF_CS64)
        return head->other_size ? 1 : 2;
    return ((ENV(uint32_t, e, hflags) & HF_CS32) ? 1 : 0) ^ head->other_size;
}

/* Go on behind ModRM, SIB and displacement. */
static void pass_operand(struct engine *e, struct head *head)
{
    enum { REGISTER = 3, SIB = 4, NO_BASE = 5, NO_BASE_16 = 6 };
    uint8_t modrm = byte_of(e, head), mod = modrm >> 6, base = modrm & 7;
    if (mod == REGISTER)
        return;
    if (!address_size(e, head)) {
        head->next += mod == 1 ? 1 : mod == 2 || base == NO_BASE_16 ? 2 : 0;
        return;
    }
    if (base == SIB)
        base = byte_of(e, head) & 7;
    head->next += mod == 1 ? 1 : mod == 2 || base == NO_BASE ? 4 : 0;
}

/* Whether a software interrupt is INT with a number, and not INT3 or INTO, whose last byte is none.  RIP is behind it. */
int is_int_with_number(struct engine *e, uint32_t number)
{
    uint64_t base = (ENV(uint32_t, e, hflags) & HF_CS64) ? 0 : FIELD(uint64_t, e->env, at.segments + 24 * CODE_SEGMENT + 8);
    return call.cpu_ldub_code(e->env, base + ENV(uint64_t, e, next_eip) - 1) == number;
}

/* Where the instruction ends that has just exited.  Of the opcodes that exit, few have operands. */
static uint64_t next_of_instruction(struct engine *e)
{
    enum { INT = 0xCD, GROUP_6 = 0x00, GROUP_7 = 0x01, MOV_FROM_CR = 0x20, MOV_TO_DR = 0x23 };
    struct head head = read_head(e);
    if (head.opcode == INT) {
        head.next++;
    } else if (head.opcode == 0x0F) {
        uint8_t second = byte_of(e, &head);
        if (second == GROUP_6 || second == GROUP_7)
            pass_operand(e, &head);
        else if (second >= MOV_FROM_CR && second <= MOV_TO_DR)
            head.next++;
    }
    return ENV(uint64_t, e, rip) + (head.next - head.begin);
}

/* nRIP: zero unless an instruction was intercepted. */
uint64_t next_rip(struct engine *e, uint32_t code)
{
    enum { LAST_OF_REGISTERS = 0x3F, BP = 0x43, BOUND = 0x45, CR0_SEL_WRITE = 0x65, MSR = 0x7C, VMRUN = 0x80,
           XSETBV = 0x8D };
    if (code == EXIT_IOIO)
        return FIELD(uint64_t, e->vmcb, VMCB_EXIT_INFO_2);
    if (code <= LAST_OF_REGISTERS || (code >= BP && code <= BOUND) || (code >= CR0_SEL_WRITE && code <= MSR)
        || (code >= VMRUN && code <= XSETBV))
        return next_of_instruction(e);
    return 0;
}

/* ---- port I/O */

enum { IO_IN = 1 << 0, IO_STRING = 1 << 2, IO_REPEAT = 1 << 3, IO_SIZE = 4, IO_ADDRESS_SIZE = 7, IO_SEGMENT = 10 };

/* What an I/O instruction says of itself, as EXITINFO1 has it; where the next one begins goes to EXITINFO2. */
static uint64_t describe_io(struct engine *e)
{
    struct head head = read_head(e);
    uint64_t said = 1ull << (IO_ADDRESS_SIZE + address_size(e, &head));
    if ((head.opcode & 0xFC) == 0x6C)              /* INS, OUTS */
        said |= IO_STRING | (head.repeats ? IO_REPEAT : 0)
                | (uint64_t)(head.opcode & 2 ? head.segment : 0) << IO_SEGMENT;
    else if ((head.opcode & 0xFC) == 0xE4)         /* the port is in the instruction */
        head.next++;
    FIELD(uint64_t, e->vmcb, VMCB_EXIT_INFO_2) = ENV(uint64_t, e, rip) + (head.next - head.begin);
    return said;
}

/* Leave the guest if the hypervisor wants to see this port; `log_size` 0, 1, 2 for 8, 16, 32 bits. */
static void check_io(void *env, uint32_t port, int log_size, uint32_t direction, uintptr_t from)
{
    enum { PROTECTED = 1, IOPL_SHIFT = 12, IOPL = 3, VM86 = 1 << 17 };
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
    stub_cpu_vmexit(env, EXIT_IOIO, describe_io(e) | direction | 1u << (IO_SIZE + log_size) | (uint64_t)port << 16, 0);
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

/* Why: Python takes a thousand times as long to see that an instruction is none that it does; a guest that executes
 * nothing but invalid ones would take minutes for a turn. */
int may_flush_line(struct engine *e)
{
    struct head head = read_head(e);
    return head.opcode == 0x0F && byte_of(e, &head) == 0xAE;
}

/* Whether an instruction is among 0F 38 F0 ... F7, with a VEX prefix or without: MOVBE, CRC32, ADCX, and BMI's. */
static int uses_general_registers_only(struct engine *e)
{
    enum { VEX = 0xC4, MAP = 0x1F, MAP_0F38 = 2 };
    struct head head = read_head(e);
    if (head.opcode == VEX) {
        if ((byte_of(e, &head) & MAP) != MAP_0F38)
            return 0;
        head.next++;
    } else if (head.opcode != 0x0F || byte_of(e, &head) != 0x38) {
        return 0;
    }
    return (byte_of(e, &head) & 0xF8) == 0xF0;
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
