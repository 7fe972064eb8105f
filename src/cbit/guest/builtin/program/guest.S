/* cbit's built-in guest: a small program that lives in encrypted memory and says what it sees.

   One image of 64 KiB, as firmware images are: it ends at 4 GiB, the processor starts 16 bytes before its end,
   and a table before that announces where the owner's secret goes.

       start.S     real mode, protected mode, private page tables, long mode
       loop.S      says who it is; waits for requests of the hypervisor, and answers them
       compute.S   counts primes; publishes the result through a mapping with C=0
       device.S    lets a device copy memory
       open.S      finds its key among the injected secrets, opens a sealed message
       aes_gcm.S   AES-GCM
       console.S   text on the serial port

   There is no interrupt table: whatever goes wrong shuts the guest down, which the hypervisor sees as an exit.

   Position and bytes are fixed: no linker takes part, every reference is resolved by the assembler. */

#include "layout.h"

        .intel_syntax noprefix
        .text
image:
#include "console.S"
#include "loop.S"
#include "compute.S"
#include "device.S"
#include "open.S"
#include "aes_gcm.S"

        .balign 4096, 0
        /* Text, so that a person who looks at memory recognises it.  Nothing refers to it. */
        .rept 160
        .ascii "These lines are part of the image of cbit's built-in guest. They are measured, and encrypted where they lie. "
        .endr

        .org    IMAGE_SIZE - 0x1000, 0
#include "start.S"
