/* What runs between Unicorn's translated code and Python.
 *
 * Two kinds of functions.  `stub_*` replace a function of libunicorn in the library's own relocation table
 * (interpose.py); each says why.  `hook_*` are registered through Unicorn's public interface.  Both are here and
 * not in Python because they run millions of times, or because what they call may leave by longjmp, which must not
 * cross a Python frame.
 */
#include "stubs.h"

#include <string.h>

struct layout at;
struct functions call;
__thread struct engine *current;

void cbit_configure(const struct layout *layout, const struct functions *functions)
{
    at = *layout;
    call = *functions;
}

/* ---- leaves for one TLB fill */

static void undo_shots(struct engine *e)
{
    for (; e->shots; e->shots--)
        *e->shot[e->shots - 1].leaf = e->shot[e->shots - 1].before;
    e->shot_allows = MAY_READ | MAY_WRITE | MAY_EXECUTE;
}

void cbit_undo_shots(struct engine *e)
{
    undo_shots(e);
}

/* ---- events and exits */

/* Push the exception in CPUState.  Its frame may need a page that is not there: the nested fault leaves by
 * longjmp, and the event that is on its way is remembered here, because QEMU forgets it. */
static void push_event(struct engine *e)
{
    e->event.vector = FIELD(uint32_t, e->cs, at.cs_exception_index);
    e->event.error_code = ENV(uint32_t, e, error_code);
    e->event.is_int = ENV(uint32_t, e, is_int);
    e->event.next_rip = ENV(uint64_t, e, next_eip);
    e->event.under_way = 1;
    call.x86_cpu_do_interrupt(e->cs);
    e->event.under_way = 0;
    ENV(uint32_t, e, is_int) = 0;                  /* else the next event would inherit a stale next_eip */
}

/* Deliver the exception in CPUState.  It takes as long as a block: where its handler cannot be fetched, none begins,
 * and the guest would fault for ever, while its clock stands. */
static void deliver(struct engine *e)
{
    if (++e->blocks >= e->deadline)
        call.uc_emu_stop(e->uc);
    push_event(e);
}

static void deliver_again(struct engine *e)
{
    FIELD(uint32_t, e->cs, at.cs_exception_index) = e->event.vector;
    ENV(uint32_t, e, error_code) = e->event.error_code;
    ENV(uint32_t, e, is_int) = e->event.is_int;
    ENV(uint64_t, e, next_eip) = e->event.next_rip;
    /* Without this a page fault while a page fault is delivered would not become a double fault. */
    ENV(uint32_t, e, old_exception) = (uint32_t)e->saved_old_exception;
    push_event(e);
}

static int virtual_interrupt_pending(const struct engine *e)
{
    return (FIELD(uint32_t, e->cs, at.cs_interrupt_request) & VIRTUAL_INTERRUPT) != 0;
}

/* Let an access begin again after a fault that was the engine's own affair. */
static void restart(struct engine *e)
{
    uint32_t *injection = &FIELD(uint32_t, e->vmcb, VMCB_EVENT_INJECTION);
    ENV(uint32_t, e, old_exception) = (uint32_t)e->saved_old_exception;
    /* A guest that needs more pages at once than there is room for would fault for ever, while its clock stands. */
    if (e->blocks > e->farthest) {
        e->farthest = e->blocks;
        e->stalls = 0;
    } else if (++e->stalls > PATIENCE) {
        e->stalls = 0;
        call.uc_emu_stop(e->uc);
    }
    if (e->event.under_way) {
        deliver_again(e);
    } else if (*injection & EVENT_VALID) {
        if ((*injection & EVENT_TYPE) == EVENT_INTERRUPT)
            call.do_interrupt_x86_hardirq(e->env, *injection & 0xFF, 1);
        else
            *injection &= ~EVENT_VALID;            /* a virtual interrupt: still pending, so it comes again */
    } else if (e->access != FETCH && e->blocks) {
        e->blocks--;                               /* the block begins again and would be counted twice */
        e->restarts++;
    }
}

/* #VMEXIT.  QEMU's own path truncates EXITINFO1 to 32 bits, knows no nRIP, and saves less than a hypervisor's
 * VMSAVE does. */
void cbit_leave(struct engine *e, uint32_t code, uint64_t info)
{
    uint32_t *injection = &FIELD(uint32_t, e->vmcb, VMCB_EVENT_INJECTION);
    /* First: it may fault for the page of the instruction, which then is executed and exits again. */
    FIELD(uint64_t, e->vmcb, VMCB_NEXT_RIP) = next_rip(e, code);
    undo_shots(e);
    /* A virtual interrupt that was interrupted is still pending in V_IRQ: it must not come twice. */
    if (!e->event.under_way && (*injection & EVENT_TYPE) != EVENT_INTERRUPT && virtual_interrupt_pending(e))
        *injection &= ~EVENT_VALID;
    e->event.under_way = 0;
    ENV(uint32_t, e, old_exception) = (uint32_t)-1;
    e->keep_tlb = 1;                               /* VMRUN decides whether the guest finds it again */
    call.do_vmexit(e->env, code, info);
    FIELD(uint64_t, e->vmcb, VMCB_CR3) = e->cr3;
    call.helper_vmsave(e->env, 2);                 /* rAX is again the host's: the VMCB's address */
    call.uc_emu_stop(e->uc);
}

static int asks_python(const struct engine *e, uint32_t code)
{
    if (code == EXIT_NPF)
        return 1;
    if (code == EXIT_EXCEPTION_UD)
        return e->ud_is_ours != 0;
    return code >= EXIT_INTR && code <= EXIT_LAST_BIT && (e->ours >> (code - EXIT_INTR) & 1);
}

/* Whether the event in CPUState is the hypervisor's and not an instruction's. */
static int is_injected(const struct engine *e)
{
    return (FIELD(uint32_t, e->vmcb, VMCB_EVENT_INJECTION) & EVENT_VALID) != 0;
}

/* Whether the hypervisor wants an exception that QEMU does not ask it about: #BP of INT3, #OF of INTO. */
static int is_overlooked(struct engine *e, uint32_t number)
{
    enum { BP = 3, OF = 4 };
    return (number == BP || number == OF) && ENV(uint32_t, e, is_int)
           && (FIELD(uint32_t, e->vmcb, VMCB_EXCEPTIONS) >> number & 1) && !is_injected(e)
           && !is_int_with_number(e, number);
}

/* Every exception and every exit of the guest comes by here. */
static void hook_interrupt(void *uc, uint32_t number, void *user)
{
    struct engine *e = user;
    e->again.last = 0;
    if (number == INVALID_OPCODE)
        return;                                    /* hook_invalid has dealt with it; unicorn 2.1.1 calls both */
    if (!in_guest(e)) {
        e->host_fault = number + 1;
        call.uc_emu_stop(uc);
        return;
    }
    if (number < EXIT_BASE) {
        e->flushed.length = 0;
        undo_shots(e);                             /* the walk that they were made for has failed */
        if (!is_overlooked(e, number)) {
            deliver(e);
            return;
        }
        ENV(uint64_t, e, rip) = ENV(uint64_t, e, next_eip) - 1;
        ENV(uint32_t, e, is_int) = 0;
        cbit_leave(e, EXIT_EXCEPTION + number, 0);
        return;
    }
    uint32_t code = number - EXIT_BASE;
    e->exit_code = code;
    e->flushed.length = 0;                         /* whatever it is: memory may come back, mappings may change */
    if (code == EXIT_NPF) {
        e->exit_info_2 = FIELD(uint64_t, e->vmcb, VMCB_EXIT_INFO_2);
        e->has_c_bit = (uint64_t)has_c_bit(e);
    }
    switch (asks_python(e, code) ? e->on_exit(code) : LEAVE) {
    case RESUME:
        break;
    case RESTART:
        restart(e);
        break;
    case DELIVER:
        undo_shots(e);
        deliver(e);
        break;
    default:
        cbit_leave(e, (uint32_t)e->exit_code, e->exit_info_1);
    }
}

/* Why in C: a kernel whose processor does not keep C-bits coherent flushes every line of a page that it shares, and a
 * copy leaves the cache whole.  The same instruction on another line of the page that has just left does nothing. */
static int repeats_flush(struct engine *e)
{
    struct line_flush *last = &e->flushed;
    if (!last->length || ENV(uint64_t, e, rip) != last->rip)
        return 0;
    uint64_t address = FIELD(uint64_t, e->env, 8 * last->base) + last->distance;
    if ((address & -(uint64_t)PAGE) != last->page)
        return 0;
    ENV(uint64_t, e, rip) += last->length;
    return 1;
}

/* An invalid opcode.  Instructions that QEMU does not do right are made invalid by their CPUID bit and end here. */
static int hook_invalid(void *uc, void *user)
{
    struct engine *e = user;
    (void)uc;
    e->again.last = 0;
    if (!in_guest(e)) {
        e->host_fault = INVALID_OPCODE + 1;
        return 0;
    }
    undo_shots(e);
    if (!is_injected(e) && (repeats_flush(e) || let_general_registers_through(e)))
        return 1;
    e->exit_code = EXIT_EXCEPTION_UD;
    e->exit_info_1 = 0;
    if (is_injected(e) || !may_flush_line(e)) {          /* not intercepted, or QEMU would have left */
        FIELD(uint32_t, e->cs, at.cs_exception_index) = INVALID_OPCODE;
        ENV(uint32_t, e, error_code) = 0;
        ENV(uint32_t, e, is_int) = 0;
        deliver(e);
        return 1;
    }
    switch (e->on_invalid()) {
    case RESUME:
        break;
    case DELIVER:
        deliver(e);
        break;
    default:
        cbit_leave(e, (uint32_t)e->exit_code, e->exit_info_1);
    }
    return 1;
}

int cbit_hook(struct engine *e)
{
    size_t hook;
    e->exit_word = &FIELD(int32_t, e->cs, at.cs_exit_word);
    e->hflags = &ENV(uint32_t, e, hflags);
    int error = call.uc_hook_add(e->uc, &hook, 1 << 0, (void *)hook_interrupt, e, 1, 0);
    if (!error)
        error = call.uc_hook_add(e->uc, &hook, 1 << 14, (void *)hook_invalid, e, 1, 0);
    if (!error && !call.helper_check_exit_request)  /* else the clock hangs there: clock.c */
        error = call.uc_hook_add(e->uc, &hook, 1 << 3, (void *)hook_block, e, 1, 0);
    return error;
}

/* ---- VMRUN */

static void tables_of(const uint8_t *vmcb, uint64_t *tables)
{
    memcpy(tables, vmcb + VMCB_EFER, 8);
    memcpy(tables + 1, vmcb + VMCB_CR4, 24);       /* CR4, CR3, CR0 */
}

/* What VMRUN checks of the control area: intercepts, ASID, enables, nCR3; as control_block.py lists it. */
static const struct { uint16_t at, length; } checked[] = {
    { 0x000, 0x14 }, { 0x058, 8 }, { 0x090, 8 }, { 0x0B0, 8 },
};

/* Whether VMRUN may refuse the event: as checks.py has it, in more words. */
static int is_odd(uint32_t event)
{
    enum { RESERVED = 1 << 8, NMI = 2 << 8, EXCEPTION = 3 << 8, SOFTWARE = 4 << 8, EXCEPTIONS = 32, VECTOR = 0xFF };
    if (!(event & EVENT_VALID))
        return 0;
    uint32_t type = event & EVENT_TYPE, vector = event & VECTOR;
    return type == RESERVED || type > SOFTWARE || (type == EXCEPTION && (vector == NMI >> 8 || vector >= EXCEPTIONS));
}

/* Whether `block` has the checked fields that were found good, the control registers with which the guest left, and
 * vouches for its permission maps. */
static int unchanged(const struct engine *e, const uint8_t *good)
{
    if (!e->block || !(e->block[VMCB_CLEAN] & CLEAN_PERMISSION_MAPS)
        || is_odd(FIELD(uint32_t, e->block, VMCB_EVENT_INJECTION)))
        return 0;
    uint64_t tables[4];
    tables_of(e->block, tables);
    if (!e->left_space || memcmp(tables, e->left, sizeof tables))
        return 0;
    for (unsigned part = 0; part < sizeof checked / sizeof *checked; part++) {
        if (memcmp(e->block + checked[part].at, good, checked[part].length))
            return 0;
        good += checked[part].length;
    }
    return 1;
}

/* QEMU takes a virtual interrupt whatever its priority. */
static void load_virtual_interrupt(struct engine *e)
{
    uint32_t *control = &FIELD(uint32_t, e->vmcb, VMCB_VIRTUAL_INTERRUPT);
    e->virtual_interrupt = *control;
    e->withheld = must_wait(*control, *control & V_TPR);
    if (e->withheld)
        *control &= ~V_IRQ;
}

/* One that still waits is still pending; and without V_INTR_MASKING the guest has not touched V_TPR. */
static void save_virtual_interrupt(struct engine *e)
{
    uint32_t *control = &FIELD(uint32_t, e->vmcb, VMCB_VIRTUAL_INTERRUPT);
    if (e->withheld)
        *control |= V_IRQ;
    if (!(e->virtual_interrupt & V_INTR_MASKING))
        *control = (*control & ~V_TPR) | (e->virtual_interrupt & V_TPR);
}

/* QEMU's copy: addresses in it are the engine's own, intercepts the hypervisor's and the engine's. */
static void load_block(struct engine *e, uint64_t space)
{
    uint8_t *vmcb = e->vmcb;
    uint64_t tables[4];
    memcpy(vmcb, e->block, VMCB_CLEAN + 8);
    memcpy(vmcb + VMCB_SAVE, e->block + VMCB_SAVE, VMCB_SAVE_END - VMCB_SAVE);
    load_virtual_interrupt(e);
    FIELD(uint32_t, vmcb, VMCB_INTERCEPTS) |= (uint32_t)e->intercepts;
    FIELD(uint32_t, vmcb, VMCB_INTERCEPTS + 4) |= (uint32_t)(e->intercepts >> 32);
    FIELD(uint64_t, vmcb, VMCB_PERMISSION_MAPS) = e->iopm_at;
    FIELD(uint64_t, vmcb, VMCB_PERMISSION_MAPS + 8) = e->msrpm_at;
    vmcb[VMCB_TLB_CONTROL] = 0;                    /* the engine flushes */
    FIELD(uint64_t, vmcb, VMCB_NESTED) = 1;
    FIELD(uint64_t, vmcb, VMCB_NESTED_CR3) = e->root;
    tables_of(vmcb, tables);
    /* Another CR3 is no reason: who runs two virtual CPUs under one ASID has to ask for the flush. */
    e->keep_tlb = e->left_space == space && tables[0] == e->left[0] && tables[1] == e->left[1]
                  && tables[3] == e->left[3];
    if (!e->keep_tlb)
        call.tlb_flush(e->cs);
    e->left_space = 0;
}

/* VMRUN of the VMCB at `block` until the guest has left, or the deadline has come: an interrupt.  General registers
 * other than rAX and rSP are the caller's.  Nothing happens, and the answer is -1, if the VMCB has to be looked at
 * because it does not have the fields `good` any more (NULL: it has been looked at). */
int cbit_vmrun(struct engine *e, uint64_t *registers, uint64_t begin, uint64_t space, const uint8_t *good)
{
    enum { GENERAL = 16 * 8, CHANGED = -1 };
    if (good && !unchanged(e, good))
        return CHANGED;
    load_block(e, space);
    e->flushed.length = 0;
    memcpy(e->env, registers, GENERAL);
    FIELD(uint64_t, e->env, 0) = e->vmcb_at;
    e->host_fault = 0;
    undo_shots(e);
    e->event.under_way = 0;
    e->again.last = 0;
    current = e;
    call.helper_vmload(e->env, 2);                 /* what VMRUN does not load */
    int error = call.uc_emu_start(e->uc, begin, 0, 0, 0);
    if (in_guest(e))
        cbit_leave(e, EXIT_INTR, 0);
    current = NULL;
    save_virtual_interrupt(e);
    memcpy(registers, e->env, GENERAL);
    tables_of(e->vmcb, e->left);
    e->left_space = space;
    if (e->block) {
        memcpy(e->block + VMCB_CONTROL, (uint8_t *)e->vmcb + VMCB_CONTROL, VMCB_CONTROL_END - VMCB_CONTROL);
        memcpy(e->block + VMCB_EVENT_INJECTION, (uint8_t *)e->vmcb + VMCB_EVENT_INJECTION, 8);
        memcpy(e->block + VMCB_NEXT_RIP, (uint8_t *)e->vmcb + VMCB_NEXT_RIP, 8);
        memcpy(e->block + VMCB_SAVE, (uint8_t *)e->vmcb + VMCB_SAVE, VMCB_SAVE_END - VMCB_SAVE);
    }
    return error;
}

/* ---- replacements */

/* Why: QEMU keeps EXITINFO1 in a 32-bit field and loses bits 32 (final address) and 33 (page-table walk), which
 * decide whose key an access uses; and it forgets which exception was being delivered. */
void stub_cpu_vmexit(void *env, uint32_t code, uint64_t info, uintptr_t from)
{
    if (current) {
        current->exit_info_1 = info;
        current->saved_old_exception = FIELD(uint32_t, env, at.old_exception);
    }
    call.cpu_vmexit(env, code, info, from);
}

/* Why: QEMU's VMRUN leaves the vector of the interrupt that it has injected behind as a pending exception.  A stop
 * that comes before any other event would raise it, and the interrupt would arrive twice. */
void stub_do_interrupt_x86_hardirq(void *env, int vector, int hardware)
{
    call.do_interrupt_x86_hardirq(env, vector, hardware);
    if (current && current->env == env)
        FIELD(uint32_t, current->cs, at.cs_exception_index) = (uint32_t)-1;
}

/* Why: the next stub must know whether the fill is for a load, a store or a fetch. */
int stub_x86_cpu_tlb_fill(void *cs, uint64_t address, int size, int access, int mmu, int probe, uintptr_t from)
{
    if (current)
        current->access = (uint64_t)access;
    return call.x86_cpu_tlb_fill(cs, address, size, access, mmu, probe, from);
}

static void note_use(struct engine *e, uint64_t physical)
{
    const struct area *pool = &e->area[POOL_AREA];
    if (physical - pool->start < pool->length) {
        uint8_t *times = e->used + (physical - pool->start) / PAGE;
        *times += *times < UINT8_MAX;
    }
}

/* Why, first: it ends every successful walk, so leaves made for this walk alone go here, and here it is known which
 * slots are in use.
 * Why, second: Unicorn never lets a page that may be written *and* executed leave its slow store path; an entry is
 * therefore good for stores or for fetches, as the access asks, never for both. */
void stub_tlb_set_page_with_attrs(void *cs, uint64_t linear, uint64_t physical, uint32_t attributes, int allowed,
                                  int mmu, uint64_t size)
{
    if (current) {
        if ((allowed & MAY_WRITE) && (allowed & MAY_EXECUTE))
            allowed &= current->access == FETCH ? ~MAY_WRITE : ~MAY_EXECUTE;
        allowed &= (int)current->shot_allows;
        undo_shots(current);
        note_use(current, physical);
    }
    call.tlb_set_page_with_attrs(cs, linear, physical, attributes, allowed, mmu, size);
}

/* Why: Unicorn lost QEMU's dirty bitmap.  A store into a page of code drops the blocks that it overlaps, then marks
 * the TLB entry clean, so later stores to other blocks of the page go unseen.  Here one store drops them all. */
void stub_tb_invalidate_phys_page_fast(void *uc, void *pages, uint64_t start, int length, uintptr_t from)
{
    if (current)
        current->flushed.length = 0;               /* it may be another instruction now */
    call.tb_invalidate_phys_page_fast(uc, pages, start, length, from);
    uint64_t page = start & -(uint64_t)PAGE;
    call.tb_invalidate_phys_range(uc, page, page + PAGE);
}

/* Why: empty in Unicorn.  A page that becomes code loses every cached write permission, those of aliases too. */
void stub_tlb_protect_code(void *uc, uint64_t address)
{
    (void)address;
    call.tlb_flush(FIELD(void *, uc, at.uc_cpu));
}

/* Why: superseded by the one above, and it walks the whole TLB for each new block. */
void stub_tlb_reset_dirty_by_vaddr(void)
{
}

/* Why: QEMU has no ASIDs and flushes at every VMRUN and #VMEXIT.  A processor does not; where the same guest goes
 * on under the same tables its translations stay. */
void stub_tlb_flush(void *cs)
{
    if (current)
        current->flushed.length = 0;
    if (!current || current->cs != cs || !current->keep_tlb)
        call.tlb_flush(cs);
}

/* Why: INVLPG: a linear page that was flushed may be another page from now on. */
void stub_tlb_flush_page(void *cs, uint64_t address)
{
    if (current)
        current->flushed.length = 0;
    call.tlb_flush_page(cs, address);
}

/* Why: QEMU gives up by abort() where a processor would shut down (an interrupt without a TSS, for one), and a guest
 * can bring that about.  It must not end the process that runs it. */
void stub_abort(void)
{
    struct engine *e = current;
    if (e && in_guest(e) && e->aborted < UINT64_MAX) {
        e->aborted++;
        call.cpu_vmexit(e->env, EXIT_SHUTDOWN, 0, 0);
    }
    abort();
}
