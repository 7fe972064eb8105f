/* The guest waits for requests: it halts, and the hypervisor may run somebody else meanwhile. */

main:
        SAY("\nI run in 64-bit mode. ")
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

the_end:
        SAY("Good-bye.\n")
        mov     dx, DONE
        xor     eax, eax
        out     dx, eax
1:      hlt
        jmp     1b
