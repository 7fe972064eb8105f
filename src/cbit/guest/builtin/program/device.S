/* A device copies memory.  It drives guest physical addresses and has no key: of a private page it can take
   ciphertext only, and what it gives to one is garbage for the guest.  So the guest copies through a shared page. */

give_to_device:                                 /* argument: 0 through the shared page, 1 straight from a private one */
        call    argument
        mov     ebx, RESULT
        test    eax, eax
        jnz     1f
        mov     esi, RESULT                     /* the bounce buffer: private memory, copied by the guest */
        mov     edi, BOUNCE
        mov     ecx, 64 / 8
        rep     movsq
        mov     ebx, SHARED_PAGE + BOUNCE_PAGE
1:      mov     eax, DMA_TAKE
        call    transfer
        test    eax, eax
        jnz     refused
        jmp     done

take_from_device:                               /* argument: as above; prints what arrived */
        call    argument
        mov     ebx, MESSAGE
        mov     esi, MESSAGE
        test    eax, eax
        jnz     1f
        mov     ebx, SHARED_PAGE + BOUNCE_PAGE
        mov     esi, BOUNCE
1:      push    rsi
        mov     eax, DMA_GIVE
        call    transfer
        pop     rsi
        test    eax, eax
        jnz     refused
        mov     ebp, esi
        SAY("the device gave me: ")
        mov     ebx, 64
2:      mov     al, [rbp]                       /* what cannot be printed is shown as a dot */
        test    al, al
        jz      4f
        cmp     al, 32
        jb      3f
        cmp     al, 126
        jbe     5f
3:      mov     al, '.'
5:      call    put
        inc     ebp
        dec     ebx
        jnz     2b
4:      mov     al, '\n'
        call    put
        jmp     done

transfer:                                       /* ebx: guest physical address; eax: what; returns eax: 0 is success */
        mov     ecx, eax
        mov     dx, DMA_LOW
        mov     eax, ebx
        out     dx, eax
        mov     dx, DMA_HIGH
        xor     eax, eax
        out     dx, eax
        mov     dx, DMA_LENGTH
        mov     eax, 64
        out     dx, eax
        mov     dx, DMA_DO
        mov     eax, ecx
        out     dx, eax
        in      eax, dx
        ret
