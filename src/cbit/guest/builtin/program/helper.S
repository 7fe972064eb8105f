/* The adversary's guest: it reads what it finds behind a window, and hands it out.

   In 32-bit protected mode without paging: under SEV every access uses its own key, whichever that is. */

        .intel_syntax noprefix
        .text
        .code32

#define WINDOW       0x100000            /* guest physical; the hypervisor maps there what it likes */
#define ASK_ARGUMENT 0xCB14
#define ANSWER       0xCB18
#define DONE         0xCB1C

        mov     edx, ASK_ARGUMENT
        in      eax, dx                         /* where in the window */
        lea     esi, [eax + WINDOW]
        in      eax, dx                         /* how many words of 32 bits */
        mov     ecx, eax
        mov     edx, ANSWER
1:      lodsd
        out     dx, eax
        dec     ecx
        jnz     1b
        mov     edx, DONE
        xor     eax, eax
        out     dx, eax
2:      hlt
        jmp     2b
