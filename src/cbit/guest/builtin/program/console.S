/* Text on the serial port, polled.  What is printed, the hypervisor reads. */

#define SAY(text) lea rsi, [rip + 8f]; call print; jmp 9f; 8: .asciz text; 9:

print:                                          /* rsi: text, ends with 0; destroys rax, rcx, rdx, rsi */
        lodsb
        test    al, al
        jz      1f
        call    put
        jmp     print
1:      ret

put:                                            /* al: character; destroys rcx, rdx */
        mov     ah, al
        mov     ecx, 1000                       /* a port that is never ready must not stop the guest */
1:      mov     dx, SERIAL_LINE
        in      al, dx
        test    al, SERIAL_READY
        jnz     2f
        dec     ecx
        jnz     1b
2:      mov     dx, SERIAL_DATA
        mov     al, ah
        out     dx, al
        ret

print_number:                                   /* eax: number, in decimal; destroys rax, rcx, rdx, rsi, r8 */
        call    number_to_digits
        jmp     print

number_to_digits:                               /* eax: number; returns rsi: its decimal digits, ends with 0 */
        mov     esi, DIGITS + 16
        mov     byte ptr [rsi], 0
        mov     r8d, 10
1:      xor     edx, edx
        div     r8d
        add     dl, '0'
        dec     rsi
        mov     [rsi], dl
        test    eax, eax
        jnz     1b
        ret
