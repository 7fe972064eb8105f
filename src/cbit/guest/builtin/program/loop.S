/* The guest waits for requests: it halts, and the hypervisor may run somebody else meanwhile. */

main:
        call    ask_name
        SAY("\nMy processor calls itself ")
        mov     esi, NAME
        call    print
        SAY(".\nI run in 64-bit mode. ")
        cmp     qword ptr [C_BIT_MASK], 0
        jne     1f
        SAY("My memory is not encrypted, as far as I can tell.\n")
        jmp     next
1:      SAY("My memory is encrypted: SEV, C-bit ")
        bsf     rax, [C_BIT_MASK]
        call    print_number
        SAY(".\n")

next:
        mov     rsp, STACK_TOP
        mov     dx, ASK_COMMAND
        in      eax, dx
        cmp     eax, 1
        je      who
        cmp     eax, 2
        je      compute
        cmp     eax, 3
        je      open
        cmp     eax, 4
        je      give_to_device
        cmp     eax, 5
        je      take_from_device
        cmp     eax, 6
        je      the_end
        cmp     eax, 7
        je      show
        test    eax, eax
        jnz     refused
        hlt                                     /* nothing to do */
        jmp     next

done:
        xor     eax, eax
        jmp     1f
refused:
        mov     eax, 1
1:      mov     dx, DONE
        out     dx, eax
        jmp     next

argument:                                       /* returns eax; destroys rdx */
        mov     dx, ASK_ARGUMENT
        in      eax, dx
        ret

answer:                                         /* eax; destroys rdx */
        mov     dx, ANSWER
        out     dx, eax
        ret

who:                                            /* C-bit or 0; a number that nobody else knows, two halves */
        xor     eax, eax
        cmp     qword ptr [C_BIT_MASK], 0
        je      1f
        bsf     rax, [C_BIT_MASK]
1:      call    answer
        mov     eax, [NONCE]
        call    answer
        mov     eax, [NONCE + 4]
        call    answer
        jmp     done

show:                                           /* argument: which page of the image; to SHOWN: it is no secret */
        call    argument
        cmp     eax, IMAGE_SIZE / 4096
        jae     refused
        shl     eax, 12
        mov     esi, IMAGE
        add     esi, eax
        mov     edi, SHOWN
        mov     ecx, 4096 / 8
        rep     movsq
        jmp     done

ask_name:                                       /* as kernels do: sixteen bytes of CPUID from each of three leaves */
        mov     edi, NAME
        mov     esi, 0x80000002
        jmp     1f
        .balign 16, 0                           /* as compilers align loops; no assembler's choice of nops */
1:      mov     eax, esi
        cpuid
        stosd
        mov     [rdi], ebx
        mov     [rdi + 4], ecx
        mov     [rdi + 8], edx
        add     edi, 12
        inc     esi
        cmp     esi, 0x80000004
        jbe     1b
        mov     byte ptr [rdi], 0
        ret

the_end:
        SAY("Good-bye.\n")
        mov     dx, DONE
        xor     eax, eax
        out     dx, eax
1:      hlt
        jmp     1b
