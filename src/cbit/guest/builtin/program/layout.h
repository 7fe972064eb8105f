/* Where everything is: the guest's memory, its image, and the ports of the world outside.

   The image ends at 4 GiB, where a processor out of reset begins.  Its memory is two megabytes at 8 MiB. */

#define IMAGE_SIZE   0x10000
#define IMAGE        0xFFFF0000          /* linear and guest physical address of the image's first byte */
#define AT(label)    ((label) - image + IMAGE)

#define MEMORY       0x800000            /* two megabytes, all of it private but two pages */
#define TABLES       (MEMORY + 0x0000)   /* page tables: six pages */
#define PML4         (TABLES + 0x0000)
#define PDPT         (TABLES + 0x1000)
#define PD_MEMORY    (TABLES + 0x2000)   /* linear 0 ... 1 GiB */
#define PD_SHARED    (TABLES + 0x3000)   /* linear 1 ... 2 GiB */
#define PD_IMAGE     (TABLES + 0x4000)   /* linear 3 ... 4 GiB */
#define PT_SHARED    (TABLES + 0x5000)
#define TABLE_PAGES  6
#define STACK_TOP    (MEMORY + 0xA000)
#define SECRET       (MEMORY + 0xF000)   /* where LAUNCH_SECRET puts the owner's secrets, encrypted */
#define SECRET_SIZE  0xC00
#define DATA         (MEMORY + 0x10000)  /* what the guest knows */
#define RESULT       (MEMORY + 0x11000)  /* what it computed, private */
#define MESSAGE      (MEMORY + 0x12000)  /* a sealed message: copied here, then opened where it lies */
#define ROUND_KEYS   (MEMORY + 0x13000)
#define SHARED_PAGE  (MEMORY + 0x14000)  /* this page and the next are all that others may read */
#define SIEVE        (MEMORY + 0x20000)
#define SIEVE_SIZE   0x180000            /* numbers below one and a half million */

#define SHARED       0x40000000          /* linear address of SHARED_PAGE with C=0 */
#define SHOWN        (SHARED + 0x1000)   /* a page of the image, for everybody */

/* In DATA. */
#define C_BIT_MASK   (DATA + 0x00)       /* 64 bits: the C-bit of page-table entries, 0 without SEV */
#define NONCE        (DATA + 0x08)       /* 64 bits: drawn at the start, known to nobody else */
#define LAST_KEY     (DATA + 0x10)       /* 32 bits: where the last round key is, from ROUND_KEYS on */
#define DIGITS       (DATA + 0x40)       /* numbers are written here */
#define NAME         (DATA + 0x80)       /* what the processor calls itself: 48 characters */

/* In SHARED_PAGE. */
#define SEALED       (SHARED + 0x000)    /* what the hypervisor brings: length (32 bits), nonce (12), text, tag (16) */
#define LONGEST      0x600
#define BOUNCE       (SHARED + 0x800)    /* what goes to and comes from the device */
#define BOUNCE_PAGE  0x800               /* its offset in the page */
#define PUBLISHED    (SHARED + 0xC00)    /* what the guest computed, for everybody */

/* The serial port, polled. */
#define SERIAL_DATA  0x3F8
#define SERIAL_LINE  0x3FD
#define SERIAL_READY 0x20

/* A device that copies memory: address, length, then what to do. */
#define DMA_LOW      0xCB00
#define DMA_HIGH     0xCB04
#define DMA_LENGTH   0xCB08
#define DMA_DO       0xCB0C              /* written: 1 memory to device, 2 device to memory; read: 0 is success */
#define DMA_TAKE     1
#define DMA_GIVE     2

/* The hypervisor's requests: number, arguments one by one, answers one by one, done. */
#define ASK_COMMAND  0xCB10
#define ASK_ARGUMENT 0xCB14
#define ANSWER       0xCB18
#define DONE         0xCB1C              /* 0: done; 1: not done */

#define CODE32       0x08
#define DATA32       0x10
#define CODE64       0x18
