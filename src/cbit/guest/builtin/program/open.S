/* A message that only this guest can open: sealed with a key that the owner injected at launch. */

open:                                           /* the message is in SEALED; prints it; answer: its length */
        /* Copy first, look afterwards: the hypervisor may change shared memory at any time. */
        mov     esi, SEALED
        mov     edi, MESSAGE
        mov     ecx, (4 + 12 + LONGEST + 16) / 4
        rep     movsd
        cmp     dword ptr [MESSAGE], LONGEST
        ja      bad_length

        call    find_key                        /* the key in rax, rcx */
        jc      no_key
        movq    xmm0, rax
        movq    xmm1, rcx
        punpcklqdq xmm0, xmm1
        mov     edi, ROUND_KEYS
        cmp     dword ptr [rsi + 16], 20 + 32
        je      1f
        call    expand_key
        jmp     2f
1:      movdqu  xmm3, [rsi + 20 + 16]
        call    expand_long_key
2:
        mov     ebx, [MESSAGE]
        mov     esi, MESSAGE + 4                /* nonce, text, tag */
        call    gcm_open
        pushf
        xor     eax, eax                        /* leave no key behind */
        mov     edi, ROUND_KEYS
        mov     ecx, 15 * 16 / 4
        rep     stosd
        popf
        jc      not_mine

        mov     byte ptr [MESSAGE + 16 + rbx], 0
        SAY("the message says: ")
        mov     esi, MESSAGE + 16
        call    print
        mov     al, '\n'
        call    put
        mov     eax, ebx
        call    answer
        jmp     done

no_key: SAY("I was given no key.\n")
        jmp     refused
bad_length:
        SAY("That is no sealed message.\n")
        jmp     refused
not_mine:
        SAY("This message is not sealed with my key, or somebody changed it.\n")
        jmp     refused

find_key:                                       /* returns carry, or rsi: its entry; rax, rcx: its first 16 bytes */
        mov     esi, SECRET
        lea     rdi, [rip + table_guid]
        call    same_guid
        jne     8f
        mov     ebx, [rsi + 16]                 /* bytes of the whole table */
        cmp     ebx, SECRET_SIZE
        ja      8f
        add     ebx, esi                        /* its end */
        add     esi, 20
1:      lea     eax, [rsi + 20]
        cmp     eax, ebx
        ja      8f                              /* no room for another entry */
        mov     ecx, [rsi + 16]                 /* bytes of this entry, its head included */
        cmp     ecx, 20
        jb      8f
        lea     rdi, [rip + key_guid]
        call    same_guid
        je      2f
        cmp     ecx, SECRET_SIZE
        ja      8f
        add     esi, ecx
        jmp     1b
2:      cmp     ecx, 20 + 16                    /* an AES key of 128 bits, or of 256, and nothing else */
        je      3f
        cmp     ecx, 20 + 32
        jne     8f
3:      lea     eax, [rsi + rcx]
        cmp     eax, ebx
        ja      8f
        mov     rax, [rsi + 20]
        mov     rcx, [rsi + 28]
        clc
        ret
8:      stc
        ret

same_guid:                                      /* rsi, rdi; returns the zero flag; destroys rax */
        mov     rax, [rsi]
        cmp     rax, [rdi]
        jne     1f
        mov     rax, [rsi + 8]
        cmp     rax, [rdi + 8]
1:      ret

table_guid:                                     /* 1e74f542-71dd-4d66-963e-ef4287ff173b */
        .byte   0x42, 0xF5, 0x74, 0x1E, 0xDD, 0x71, 0x66, 0x4D
        .byte   0x96, 0x3E, 0xEF, 0x42, 0x87, 0xFF, 0x17, 0x3B
key_guid:                                       /* 5e06fa71-8a6f-4c33-9d3e-2b40c8a17e95: this guest's message key */
        .byte   0x71, 0xFA, 0x06, 0x5E, 0x6F, 0x8A, 0x33, 0x4C
        .byte   0x9D, 0x3E, 0x2B, 0x40, 0xC8, 0xA1, 0x7E, 0x95
