/* AES-GCM with keys of 128 or 256 bits and the processor's AES instructions: FIPS 197, NIST SP 800-38D.  Nonces of 96 bits, no further data.

   No table is looked up and no branch depends on a secret. */

        .macro  EXPAND constant, round
        aeskeygenassist xmm1, xmm0, \constant
        call    expand_step
        movdqa  [rdi + 16 * \round], xmm0
        .endm

expand_key:                                     /* xmm0: key; rdi: where 11 round keys go */
        mov     dword ptr [LAST_KEY], 16 * 10
        movdqa  [rdi], xmm0
        EXPAND  0x01, 1
        EXPAND  0x02, 2
        EXPAND  0x04, 3
        EXPAND  0x08, 4
        EXPAND  0x10, 5
        EXPAND  0x20, 6
        EXPAND  0x40, 7
        EXPAND  0x80, 8
        EXPAND  0x1B, 9
        EXPAND  0x36, 10
        ret

        .macro  EXPAND_LONG constant, round
        aeskeygenassist xmm1, xmm3, \constant
        call    expand_step
        movdqa  [rdi + 16 * \round], xmm0
        .endm

        .macro  EXPAND_HALF round
        aeskeygenassist xmm1, xmm0, 0
        pshufd  xmm1, xmm1, 0xAA                /* no rotation, no constant */
        movdqa  xmm4, xmm0
        movdqa  xmm0, xmm3
        call    expand_step
        movdqa  xmm3, xmm0
        movdqa  xmm0, xmm4
        movdqa  [rdi + 16 * \round], xmm3
        .endm

expand_long_key:                                /* xmm0, xmm3: key; rdi: where 15 round keys go; destroys xmm4 */
        mov     dword ptr [LAST_KEY], 16 * 14
        movdqa  [rdi], xmm0
        movdqa  [rdi + 16], xmm3
        EXPAND_LONG 0x01, 2
        EXPAND_HALF 3
        EXPAND_LONG 0x02, 4
        EXPAND_HALF 5
        EXPAND_LONG 0x04, 6
        EXPAND_HALF 7
        EXPAND_LONG 0x08, 8
        EXPAND_HALF 9
        EXPAND_LONG 0x10, 10
        EXPAND_HALF 11
        EXPAND_LONG 0x20, 12
        EXPAND_HALF 13
        EXPAND_LONG 0x40, 14
        ret

expand_step:                                    /* each word is the sum of the words before it */
        pshufd  xmm1, xmm1, 0xFF
        movdqa  xmm2, xmm0
        pslldq  xmm2, 4
        pxor    xmm0, xmm2
        pslldq  xmm2, 4
        pxor    xmm0, xmm2
        pslldq  xmm2, 4
        pxor    xmm0, xmm2
        pxor    xmm0, xmm1
        ret

encrypt_block:                                  /* xmm0; destroys rax */
        mov     eax, ROUND_KEYS
        pxor    xmm0, [rax]
        .irp    round, 1, 2, 3, 4, 5, 6, 7, 8, 9
        aesenc  xmm0, [rax + 16 * \round]
        .endr
        cmp     dword ptr [LAST_KEY], 16 * 10   /* how long a key is, is no secret */
        je      1f
        .irp    round, 10, 11, 12, 13
        aesenc  xmm0, [rax + 16 * \round]
        .endr
1:      add     eax, [LAST_KEY]
        aesenclast xmm0, [rax]
        ret

counter_block:                                  /* xmm0 = E(nonce, r13d); r12: nonce; destroys rax, rdx */
        mov     edx, r13d
        bswap   edx
        shl     rdx, 32
        mov     eax, [r12 + 8]
        or      rdx, rax
        movq    xmm0, [r12]
        movq    xmm1, rdx
        punpcklqdq xmm0, xmm1
        jmp     encrypt_block

/* rax, rdx (first and last 64 bits, most significant bit first) := that, times H.  H is in r14, r15. */
multiply:
        mov     r8, r14
        mov     r9, r15
        xor     r10d, r10d
        xor     r11d, r11d
        mov     ecx, 128
1:      shl     rdx, 1                          /* the next bit of the factor, as a mask */
        rcl     rax, 1
        sbb     rdi, rdi
        mov     rbp, r8
        and     rbp, rdi
        xor     r10, rbp
        and     rdi, r9
        xor     r11, rdi
        shr     r8, 1                           /* H times x; what falls out comes back as the polynomial */
        rcr     r9, 1
        sbb     rdi, rdi
        mov     rbp, 0xE100000000000000
        and     rdi, rbp
        xor     r8, rdi
        dec     ecx
        jnz     1b
        mov     rax, r10
        mov     rdx, r11
        ret

/* Opens in place.  rsi: nonce, ciphertext, tag; ebx: bytes of text.  Returns carry if it is not authentic, and then the
   text stays as it is.  Destroys everything but rbx. */
gcm_open:
        mov     r12, rsi
        pxor    xmm0, xmm0                      /* H = E(0) */
        call    encrypt_block
        call    from_block
        mov     r14, rax
        mov     r15, rdx

        /* GHASH over the ciphertext, then its length in bits. */
        xor     eax, eax
        xor     edx, edx
        lea     rsi, [r12 + 12]
        mov     r13d, ebx
1:      test    r13d, r13d
        jz      3f
        movdqu  xmm2, [rsi]
        cmp     r13d, 16
        jae     2f
        call    keep_bytes                      /* the last block is filled with zeros */
        mov     r13d, 16
2:      sub     r13d, 16
        add     rsi, 16
        call    add_block
        call    multiply
        jmp     1b
3:      lea     rdi, [rbx * 8]
        xor     rdx, rdi
        call    multiply

        /* The tag is that, encrypted with the first counter block. */
        push    rax
        push    rdx
        mov     r13d, 1
        call    counter_block
        call    from_block
        pop     rdi
        xor     rdx, rdi
        pop     rdi
        xor     rax, rdi
        lea     rsi, [r12 + 12]
        add     rsi, rbx
        mov     rdi, [rsi]
        bswap   rdi
        xor     rax, rdi
        mov     rdi, [rsi + 8]
        bswap   rdi
        xor     rdx, rdi
        or      rax, rdx                        /* all bits are compared, whatever the first ones say */
        jnz     5f

        /* Decrypt: counter blocks from 2 on. */
        lea     rsi, [r12 + 12]
        lea     rdi, [rsi + rbx]
4:      cmp     rsi, rdi
        jae     6f
        inc     r13d
        call    counter_block
        movdqu  xmm2, [rsi]
        pxor    xmm0, xmm2
        movdqu  [rsi], xmm0                     /* past the end of the text this changes the tag only */
        add     rsi, 16
        jmp     4b
5:      stc
        ret
6:      clc
        ret

from_block:                                     /* xmm0 to rax, rdx, most significant bit first */
        movq    rax, xmm0
        psrldq  xmm0, 8
        movq    rdx, xmm0
        bswap   rax
        bswap   rdx
        ret

add_block:                                      /* rax, rdx ^= xmm2; destroys rdi, xmm2 */
        movq    rdi, xmm2
        bswap   rdi
        xor     rax, rdi
        psrldq  xmm2, 8
        movq    rdi, xmm2
        bswap   rdi
        xor     rdx, rdi
        ret

keep_bytes:                                     /* xmm2: only its first r13 bytes; destroys rdi, xmm1 */
        lea     rdi, [rip + ones_then_zeros + 16]
        sub     rdi, r13
        movdqu  xmm1, [rdi]
        pand    xmm2, xmm1
        ret

        .balign 16, 0
ones_then_zeros:
        .quad   -1, -1, 0, 0
