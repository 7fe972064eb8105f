/* What the native files share: the engine's state, and what Python tells them of libunicorn.
 *
 * Nothing here knows an offset of Unicorn's structures: layout.py finds them and hands them over.
 */
#ifndef CBIT_STUBS_H
#define CBIT_STUBS_H

#include <stdint.h>
#include <stdlib.h>

enum { LOAD, STORE, FETCH };                       /* how an access reaches the TLB */
enum { MAY_READ = 1, MAY_WRITE = 2, MAY_EXECUTE = 4 };
enum { INVALID_OPCODE = 6, GENERAL_PROTECTION = 13 };
enum { EXIT_BASE = 0x100 };                        /* an exception number from here on is an exit code */
enum { EXIT_EXCEPTION = 0x40, EXIT_EXCEPTION_UD = 0x46, EXIT_INTR = 0x60, EXIT_IOIO = 0x7B, EXIT_SHUTDOWN = 0x7F, EXIT_LAST_BIT = 0x9F, EXIT_NPF = 0x400 };
enum { RESUME, RESTART, DELIVER, LEAVE };          /* what Python answers to an exit */
enum { VMCB_CONTROL = 0x060, VMCB_CONTROL_END = 0x090, VMCB_EVENT_END = 0x0B0, VMCB_CLEAN = 0x0C0, VMCB_SAVE = 0x400,
       VMCB_SAVE_END = 0x700 };                    /* the first three and the last: what #VMEXIT writes */
enum { VMCB_CR_WRITES = 0x002, VMCB_EXCEPTIONS = 0x008, VMCB_INTERCEPTS = 0x00C, VMCB_PERMISSION_MAPS = 0x040, VMCB_TLB_CONTROL = 0x05C, VMCB_NESTED = 0x090,
       VMCB_NESTED_CR3 = 0x0B0, VMCB_EFER = 0x4D0, VMCB_CR4 = 0x548 };
enum { VMCB_NEXT_RIP = 0x0C8 };                     /* #VMEXIT writes it too */
enum { VMCB_VIRTUAL_INTERRUPT = 0x060, V_TPR = 0xF, V_IRQ = 1 << 8, V_PRIORITY_SHIFT = 16, V_IGN_TPR = 1 << 20,
       V_INTR_MASKING = 1 << 24 };
enum { CLEAN_PERMISSION_MAPS = 1 << 1 };
enum { VMCB_EXIT_INFO_2 = 0x080, VMCB_CR3 = 0x550, VMCB_EVENT_INJECTION = 0xA8, EVENT_VALID = 1u << 31, EVENT_TYPE = 7 << 8, EVENT_INTERRUPT = 0 << 8 };
enum { VIRTUAL_INTERRUPT = 0x100 };                /* in CPUState.interrupt_request */
enum { HF_CPL = 3, HF_CS32 = 1 << 4, HF_SS32 = 1 << 5, HF_ADDSEG = 1 << 6, HF_LMA = 1 << 14, HF_CS64 = 1 << 15,
       HF_GUEST = 1 << 21, HF_OSFXSR = 1 << 22 };
enum { PATIENCE = 1 << 12 };                       /* faults of one block before a physical interrupt */
enum { POOL_AREA, TABLES_AREA, HOST_AREA, AREAS };  /* of the engine's physical memory, as processor.py lays it out */
enum { SHOTS = 16, LOOPS = 64, LINES = 64, LINE = 64, PAGE = 4096 };

/* Offsets, found by layout.py: `cs_*` from CPUState, `uc_*` from uc_engine, the others from the register file. */
struct layout {
    uint64_t uc_cpu, cs_env, cs_exception_index, cs_interrupt_request;
    uint64_t rip, cc_src, hflags, segments, cr0, cr4, efer, nested_cr3;
    uint64_t star, lstar, cstar, sfmask;
    uint64_t old_exception, error_code, is_int, next_eip;
    uint64_t cs_exit_word;
};

/* Functions of libunicorn, found by their exported names. */
struct functions {
    void (*cpu_vmexit)(void *env, uint32_t code, uint64_t info, uintptr_t from);
    int (*x86_cpu_tlb_fill)(void *cs, uint64_t address, int size, int access, int mmu, int probe, uintptr_t from);
    void (*tlb_set_page_with_attrs)(void *cs, uint64_t linear, uint64_t physical, uint32_t attributes, int allowed,
                                    int mmu, uint64_t size);
    void (*tb_invalidate_phys_page_fast)(void *uc, void *pages, uint64_t start, int length, uintptr_t from);
    void (*cpu_x86_update_cr0)(void *env, uint32_t value);
    void (*cpu_x86_update_cr3)(void *env, uint64_t value);
    void (*cpu_x86_update_cr4)(void *env, uint32_t value);
    uint64_t (*helper_read_crN)(void *env, int number);
    void (*helper_write_crN)(void *env, int number, uint64_t value);
    void (*tb_invalidate_phys_range)(void *uc, uint64_t start, uint64_t end);
    void (*tlb_flush)(void *cs);
    void (*tlb_flush_page)(void *cs, uint64_t address);
    void (*x86_cpu_do_interrupt)(void *cs);
    void (*do_interrupt_x86_hardirq)(void *env, int vector, int hardware);
    void (*do_vmexit)(void *env, uint32_t code, uint64_t info);
    void (*helper_vmload)(void *env, int address_size);
    void (*helper_vmsave)(void *env, int address_size);
    uint64_t (*helper_read_eflags)(void *env);
    void (*helper_write_eflags)(void *env, uint64_t value, uint32_t mask);
    void (*raise_exception)(void *env, int vector);
    void (*raise_exception_err)(void *env, int vector, int error_code);
    void (*cpu_restore_state)(void *cs, uintptr_t from, int will_exit);
    uint8_t (*cpu_ldub_code)(void *env, uint64_t address);
    void (*helper_check_iob)(void *env, uint32_t port);
    void (*helper_check_iow)(void *env, uint32_t port);
    void (*helper_check_iol)(void *env, uint32_t port);
    uint8_t (*x86_ldub_phys)(void *cs, uint64_t address);
    uint32_t (*x86_lduw_phys)(void *cs, uint64_t address);
    uint32_t (*x86_ldl_phys)(void *cs, uint64_t address);
    uint64_t (*x86_ldq_phys)(void *cs, uint64_t address);
    void (*x86_stl_phys_notdirty)(void *cs, uint64_t address, uint32_t value);
    void (*x86_stw_phys)(void *cs, uint64_t address, uint32_t value);
    void (*x86_stl_phys)(void *cs, uint64_t address, uint32_t value);
    void (*x86_stq_phys)(void *cs, uint64_t address, uint64_t value);
    void *(*tlb_vaddr_to_host)(void *env, uint64_t address, int access, int mmu);
    void (*helper_check_exit_request)(void *uc, uint32_t not_now);  /* NULL: this library has none */
    int (*uc_emu_start)(void *uc, uint64_t begin, uint64_t until, uint64_t timeout, size_t count);
    int (*uc_emu_stop)(void *uc);
    int (*uc_hook_add)(void *uc, size_t *hook, int type, void *callback, void *user, uint64_t begin, uint64_t end,
                       ...);
};

/* A leaf of the shadow tables that exists for one TLB fill only, and what it holds otherwise. */
struct shot { uint64_t *leaf, before; };

/* A region of the engine's physical memory, and where it lies in this process. */
struct area { uint64_t start, length; char *memory; };

/* An event on its way into the guest. */
struct event { uint32_t under_way, vector, error_code, is_int; uint64_t next_rip; };

/* One engine; machine code and Python share it (native.py mirrors it). */
struct engine {
    void *uc, *cs, *env, *vmcb, *iopm;
    int (*on_exit)(uint32_t code);       /* Python: an exit that may be the engine's own affair */
    int (*on_invalid)(void);             /* Python: an invalid instruction; 1: emulated */
    int (*on_entropy)(void);             /* Python: refill `random` */
    uint64_t ours;                       /* exits 0x60 + bit that Python sees first */
    uint64_t ud_is_ours;                 /* #UD intercepts too */
    uint64_t intercepts;                 /* what QEMU intercepts besides what the hypervisor asked for */
    uint64_t vmcb_at, iopm_at, msrpm_at; /* physical addresses in the engine's own space */
    uint8_t *block;                      /* the hypervisor's VMCB where it lies in the cache; NULL: not there any more */
    uint64_t left_space, left[4];        /* who left last, with which EFER, CR4, CR3, CR0 */
    uint64_t exit_code;                  /* of the last exit; Python may change both before LEAVE */
    uint64_t exit_info_1;                /* all 64 bits */
    uint64_t exit_info_2;                /* of a nested fault: the guest physical address */
    uint64_t has_c_bit;                  /* and whether the guest's paging mode has C-bits */
    uint64_t access;                     /* of the last TLB fill */
    uint64_t root, root_without_c_bit;   /* shadow tables for paging modes with and without a C-bit */
    uint64_t c_bit;                      /* what a page-table walk adds to CR3; 0 without SEV */
    uint64_t cr3;                        /* CR3 as the guest wrote it */
    uint64_t cr3_reserved, cr4_reserved; /* bits that a MOV must not set */
    uint64_t virtual_interrupt;          /* control of the virtual interrupt, as VMRUN loaded it */
    uint64_t withheld;                   /* it waits until its priority is above that of the guest */
    uint64_t keep_tlb;                   /* from #VMEXIT to the first block after VMRUN: the same guest again */
    uint64_t blocks, deadline;           /* executed in guest mode; stop at the latter */
    int32_t *exit_word;                  /* of CPUState: negative if the next block is to stop */
    uint32_t *hflags;
    uint64_t tsc_per_block;
    uint64_t restarts;                   /* blocks that a fault made begin again */
    uint64_t farthest, stalls;           /* restarts since the clock was last farther than ever */
    uint64_t aborted;                    /* libunicorn gave up, and the guest was shut down instead */
    uint64_t host_fault;                 /* an exception outside guest mode: an error in this package */
    uint64_t saved_old_exception;
    struct line_flush {                  /* the instruction that flushed last, and the page that has no copy now */
        uint64_t rip, length, page, base, distance;
    } flushed;
    uint64_t random_left;
    uint64_t random[64];
    struct event event;
    uint64_t shots, shot_allows;
    struct shot shot[SHOTS];
    uint8_t *used;                       /* by number of a slot: how often it came into the TLB */
    struct area area[AREAS];
    struct again {                       /* blocks that ran twice in a row, and whether they are string instructions */
        uint64_t last;                   /* the block before this one */
        uint64_t paused, pause;          /* the block that is left alone for so many turns */
        uint64_t turns;                  /* of string instructions, done at once since power-on */
        struct loop { uint64_t block, string; } loop[LOOPS];
    } again;
};

#pragma GCC visibility push(hidden)                /* short names: nobody else's may be taken for them */
extern struct layout at;
extern struct functions call;
extern __thread struct engine *current;            /* the engine that this thread runs; another user has none */
#pragma GCC visibility pop

#define FIELD(type, base, offset) (*(type *)((char *)(base) + (offset)))
#define ENV(type, e, name) FIELD(type, (e)->env, at.name)

static inline int in_guest(const struct engine *e)
{
    return (ENV(uint32_t, e, hflags) & HF_GUEST) != 0;
}

/* Whether the guest's paging mode has C-bits. */
static inline int has_c_bit(const struct engine *e)
{
    enum { PG = 1u << 31, PAE = 1 << 5 };
    return (ENV(uint64_t, e, cr0) & PG) && (ENV(uint64_t, e, cr4) & PAE);
}

/* Whether a pending virtual interrupt has to wait under a task priority. */
static inline int must_wait(uint32_t control, uint32_t priority)
{
    return (control & V_IRQ) && !(control & V_IGN_TPR) && (control >> V_PRIORITY_SHIFT & V_TPR) <= priority;
}

void cbit_undo_shots(struct engine *e);
void hook_block(void *uc, uint64_t address, uint32_t size, void *user);
int let_general_registers_through(struct engine *e);
int may_flush_line(struct engine *e);
int is_int_with_number(struct engine *e, uint32_t number);
uint64_t next_rip(struct engine *e, uint32_t code);
void stub_cpu_vmexit(void *env, uint32_t code, uint64_t info, uintptr_t from);

#endif
