/* From reset to long mode on private page tables; then the end of the image: GUID table and reset vector. */

        .code16
real_mode:                                      /* CS base 0xFFFF0000, everything else 0 */
        cli
        .byte   0x2E, 0x66, 0x0F, 0x01, 0x16    /* lgdtd cs:[gdt_pointer] */
        .word   gdt_pointer - image
        mov     eax, cr0
        or      al, 1                           /* PE */
        mov     cr0, eax
        .byte   0x66, 0xEA                      /* jmp far, 32-bit offset */
        .long   AT(protected_mode)
        .word   CODE32

        .balign 8, 0
gdt:    .quad   0
        .quad   0x00CF9B000000FFFF              /* 32-bit code, 4 GiB */
        .quad   0x00CF93000000FFFF              /* data */
        .quad   0x00AF9B000000FFFF              /* 64-bit code */
gdt_pointer:
        .word   4 * 8 - 1
        .long   AT(gdt)

        .code32
protected_mode:                                 /* paging is off: under SEV every access is private */
        mov     eax, DATA32
        mov     ds, eax
        mov     es, eax
        mov     ss, eax
        mov     esp, STACK_TOP

        /* Is this memory encrypted, and which bit of a page-table entry says so?  CPUID is the hypervisor's
           answer; SEV_STATUS is the processor's, and cannot be intercepted. */
        xor     ebp, ebp                        /* high half of the C-bit's mask: the bit is above bit 31 */
        mov     eax, 0x80000000
        cpuid
        cmp     eax, 0x8000001F
        jb      1f
        mov     eax, 0x8000001F
        cpuid
        test    eax, 2                          /* SEV */
        jz      1f
        mov     esi, ebx
        mov     ecx, 0xC0010131                 /* SEV_STATUS */
        rdmsr
        test    eax, 1
        jz      1f
        mov     ecx, esi
        and     ecx, 31                         /* position 32 ... 63, in the high half */
        mov     ebp, 1
        shl     ebp, cl
1:
        /* What the launch did not encrypt reads as garbage until it is written. */
        cld
        mov     edi, TABLES
        mov     ecx, TABLE_PAGES * 4096 / 4
        xor     eax, eax
        rep     stosd

        /* Every table and every page is private, but for two leaves. */
#define ENTRY(at, value, high) mov dword ptr [at], value; mov dword ptr [at + 4], high
        ENTRY(PML4, PDPT + 3, ebp)
        ENTRY(PDPT, PD_MEMORY + 3, ebp)
        ENTRY(PDPT + 8, PD_SHARED + 3, ebp)
        ENTRY(PDPT + 3 * 8, PD_IMAGE + 3, ebp)
        ENTRY(PD_MEMORY + 8 * (MEMORY >> 21), MEMORY + 0x83, ebp)      /* 2 MiB */
        ENTRY(PD_IMAGE + 8 * 511, 0xFFE00081, ebp)                     /* 2 MiB, read-only */
        ENTRY(PD_SHARED, PT_SHARED + 3, ebp)
        ENTRY(PT_SHARED, SHARED_PAGE + 3, 0)                           /* C=0 */
        ENTRY(PT_SHARED + 8, SHARED_PAGE + 0x1000 + 3, 0)

        mov     dword ptr [C_BIT_MASK], 0
        mov     dword ptr [C_BIT_MASK + 4], ebp

        mov     eax, cr4
        or      eax, 1 << 5 | 1 << 9 | 1 << 10  /* PAE, and SSE as the AES instructions want it */
        mov     cr4, eax
        mov     eax, PML4                       /* the C-bit does not fit yet: walks are private all the same */
        mov     cr3, eax
        mov     ecx, 0xC0000080                 /* EFER */
        rdmsr
        or      eax, 1 << 8                     /* LME */
        wrmsr
        mov     eax, cr0
        and     eax, ~(1 << 2)                  /* EM */
        or      eax, 1 << 31 | 1 << 16 | 1 << 1 /* PG, WP, MP */
        mov     cr0, eax
        .byte   0xEA                            /* jmp far */
        .long   AT(long_mode)
        .word   CODE64

        .code64
long_mode:
        mov     rax, cr3                        /* now the whole register is there */
        or      rax, [C_BIT_MASK]
        mov     cr3, rax

        mov     ecx, 10                         /* RDRAND may have nothing for a moment */
1:      rdrand  rax
        jc      2f
        dec     ecx
        jnz     1b
        xor     eax, eax
2:      mov     [NONCE], rax
        jmp     main

        /* What the image tells a loader, in the format of OVMF: 32 bytes before its end, read backwards. */
        .org    IMAGE_SIZE - 32 - 18 - 26, 0
        .long   SECRET, SECRET_SIZE
        .word   26
        .byte   0x61, 0xB3, 0x2E, 0x4C, 0x9B, 0x7D, 0xC3, 0x4C  /* 4c2eb361-7d9b-4cc3-8081-127c90d3d294 */
        .byte   0x80, 0x81, 0x12, 0x7C, 0x90, 0xD3, 0xD2, 0x94
        .word   26 + 18
        .byte   0xDE, 0x82, 0xB5, 0x96, 0xB2, 0x1F, 0xF7, 0x45  /* 96b582de-1fb2-45f7-baea-a366c55a082d */
        .byte   0xBA, 0xEA, 0xA3, 0x66, 0xC5, 0x5A, 0x08, 0x2D

        .org    IMAGE_SIZE - 16, 0
        .code16
        .byte   0xE9                            /* reset vector: jmp real_mode */
        .word   real_mode - . - 2
        .org    IMAGE_SIZE, 0
        .code64
