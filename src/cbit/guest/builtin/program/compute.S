/* Something that can be checked: how many primes are there below a number? */

compute:                                        /* argument: the number; answer: how many */
        call    argument
        cmp     eax, 2
        jb      refused
        cmp     eax, SIEVE_SIZE
        ja      refused
        mov     ebx, eax                        /* the sieve of Eratosthenes, one byte a number */

        mov     edi, SIEVE
        mov     ecx, ebx
        mov     al, 1
        rep     stosb
        mov     word ptr [SIEVE], 0             /* 0 and 1 */

        mov     ecx, 2
1:      mov     eax, ecx
        mul     ecx
        cmp     rax, rbx
        jae     4f
        cmp     byte ptr [SIEVE + rcx], 0
        je      3f
2:      mov     byte ptr [SIEVE + rax], 0
        add     eax, ecx
        cmp     eax, ebx
        jb      2b
3:      inc     ecx
        jmp     1b

4:      xor     ebp, ebp
        xor     ecx, ecx
5:      movzx   eax, byte ptr [SIEVE + rcx]
        add     ebp, eax
        inc     ecx
        cmp     ecx, ebx
        jb      5b

        /* The same words twice: through a private mapping, and for everybody through one with C=0. */
        mov     edi, RESULT
        call    write_result
        mov     edi, PUBLISHED
        call    write_result

        mov     rsi, RESULT
        call    print
        mov     al, '\n'
        call    put
        mov     eax, ebp
        call    answer
        jmp     done

write_result:                                   /* "primes below N: P" to rdi, 64 bytes; N in ebx, P in ebp */
        push    rdi
        xor     eax, eax
        mov     ecx, 64
        rep     stosb
        pop     rdi
        lea     rsi, [rip + primes_below]
        call    copy
        mov     eax, ebx
        call    copy_number
        lea     rsi, [rip + colon]
        call    copy
        mov     eax, ebp
        jmp     copy_number

copy_number:
        call    number_to_digits
copy:                                           /* rsi: text, ends with 0; rdi: to; destroys al */
        lodsb
        test    al, al
        jz      1f
        stosb
        jmp     copy
1:      ret

primes_below:
        .asciz  "primes below "
colon:  .asciz  ": "
