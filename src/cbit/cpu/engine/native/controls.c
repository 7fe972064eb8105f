/* Control registers: what a MOV may put into them, and what follows for the tables that are walked. */
#include "stubs.h"

static void choose_root(void *env)
{
    if (!current || current->env != env || !in_guest(current))
        return;
    uint64_t root = has_c_bit(current) ? current->root : current->root_without_c_bit;
    if (root != FIELD(uint64_t, env, at.nested_cr3)) {
        FIELD(uint64_t, env, at.nested_cr3) = root;
        call.tlb_flush(current->cs);
    }
}

/* Why: without paging, or without PAE, a guest has no C-bit and all its memory is private: another shadow root. */
void stub_cpu_x86_update_cr0(void *env, uint32_t value)
{
    call.cpu_x86_update_cr0(env, value);
    choose_root(env);
}

/* Why: QEMU walks the top table through CR3's own C-bit, but the hardware's walk is private whatever it says.
 * A kernel runs its decompressor on a CR3 without it; each TLB fill would then be a fault of the engine. */
void stub_cpu_x86_update_cr3(void *env, uint64_t value)
{
    if (current && current->env == env && in_guest(current)) {
        current->cr3 = value;
        value |= current->c_bit;
    }
    call.cpu_x86_update_cr3(env, value);
}

/* Why: as CR0: PAE is a bit of CR4. */
void stub_cpu_x86_update_cr4(void *env, uint32_t value)
{
    call.cpu_x86_update_cr4(env, value);
    choose_root(env);
}

/* Why: the guest reads CR3 as it wrote it; the original asks whether the hypervisor wants to know. */
uint64_t stub_helper_read_crN(void *env, int number)
{
    uint64_t value = call.helper_read_crN(env, number);
    return number == 3 && current && current->env == env && in_guest(current) ? current->cr3 : value;
}

/* Whether MOV to a control register is #GP. */
static int refuses(const struct engine *e, int number, uint64_t value)
{
    enum { PE = 1, NW = 1 << 29, CD = 1 << 30, PG = 1u << 31, PAE = 1 << 5, LME = 1 << 8, TPR = 0xF };
    int long_mode = (*e->hflags & HF_LMA) != 0, pae = (ENV(uint64_t, e, cr4) & PAE) != 0;
    switch (number) {
    case 0:
        return value >> 32 || ((value & NW) && !(value & CD)) || ((value & PG) && !(value & PE))
               || ((value & PG) && !pae && (ENV(uint64_t, e, efer) & LME))
               || (!(value & PG) && (*e->hflags & HF_CS64));
    case 3:
        return (value & e->cr3_reserved) != 0;
    case 4:
        return (value & e->cr4_reserved) || (long_mode && !(value & PAE));
    default:
        return (value & ~(uint64_t)TPR) != 0;
    }
}

/* Why: QEMU takes any value; VMRUN would refuse it, and a page walk go astray.  An intercept comes before the fault,
 * and is the original's.  Outside 64-bit code the upper half of the operand is not looked at. */
void stub_helper_write_crN(void *env, int number, uint64_t value)
{
    struct engine *e = current;
    if (e && e->env == env && in_guest(e)) {
        if (!(*e->hflags & HF_CS64))
            value = (uint32_t)value;
        if (!(FIELD(uint16_t, e->vmcb, VMCB_CR_WRITES) >> number & 1) && refuses(e, number, value))
            call.raise_exception_err(env, GENERAL_PROTECTION, 0);  /* leaves by longjmp */
    }
    call.helper_write_crN(env, number, value);
    /* What waits for a lower priority comes at the next block, which this instruction ends. */
    if (number == 8 && e && e->env == env && e->withheld && (e->virtual_interrupt & V_INTR_MASKING)
        && !must_wait((uint32_t)e->virtual_interrupt, (uint32_t)value)) {
        FIELD(uint32_t, e->cs, at.cs_interrupt_request) |= VIRTUAL_INTERRUPT;
        e->withheld = 0;
    }
}
