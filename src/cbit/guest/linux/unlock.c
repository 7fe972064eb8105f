/* Open an encrypted disk with the secret that its owner injected: the guest's cryptsetup, for one purpose.
 *
 *     unlock DEVICE NAME        /dev/vda becomes /dev/dm-0, a dm-crypt device called NAME
 *
 * The key is read from /secret/table, which the kernel unpacked from the page that LAUNCH_SECRET filled, and it
 * leaves for the kernel by an ioctl: it is never in an argument, an environment, or another file.
 * Exit code: 0 open; 1 refused, with a line that says why; 2 there is no secret.
 *
 * No C library: the program is static, small, and the same wherever it is compiled.
 * Sources: Linux, include/uapi/linux/dm-ioctl.h, Documentation/admin-guide/device-mapper/dm-crypt.rst;
 * launch-inputs.md §4 (the secret table).
 */

#include <linux/dm-ioctl.h>
#include <linux/fs.h>
#include <asm/unistd.h>
#include <fcntl.h>
#include <stddef.h>
#include <stdint.h>

enum { TABLE_ROOM = 3072, HEADER = 20, SECTOR = 512, DATA_ROOM = 1024 };

static const uint8_t TABLE_GUID[16] = {0x42, 0xf5, 0x74, 0x1e, 0xdd, 0x71, 0x66, 0x4d,
                                       0x96, 0x3e, 0xef, 0x42, 0x87, 0xff, 0x17, 0x3b};
static const uint8_t KEY_GUID[16] = {0xe5, 0x69, 0x68, 0x73, 0xf0, 0x84, 0x73, 0x49,
                                     0x92, 0xec, 0x06, 0x87, 0x9c, 0xe3, 0xda, 0x0b};

static uint8_t table[TABLE_ROOM + 1];
static struct {
    struct dm_ioctl head;
    uint8_t data[DATA_ROOM];
} request;

static long call(long number, long a, long b, long c)
{
    long result;
    __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
    return result;
}

/* The compiler may call these two for plain loops and assignments. */
void *memset(void *to, int value, size_t count)
{
    for (size_t i = 0; i < count; i++)
        ((volatile uint8_t *)to)[i] = (uint8_t)value;
    return to;
}

void *memcpy(void *to, const void *from, size_t count)
{
    for (size_t i = 0; i < count; i++)
        ((volatile uint8_t *)to)[i] = ((const uint8_t *)from)[i];
    return to;
}

static size_t length_of(const char *text)
{
    size_t n = 0;
    while (text[n])
        n++;
    return n;
}

static void say(const char *text)
{
    call(__NR_write, 2, (long)text, (long)length_of(text));
}

static void wipe(void)
{
    memset(table, 0, sizeof table);
    memset(&request, 0, sizeof request);
}

static _Noreturn void leave(int code, const char *why)
{
    wipe();
    say("unlock: ");
    say(why);
    say("\n");
    for (;;)
        call(__NR_exit_group, code, 0, 0);
}

static int same(const uint8_t *a, const uint8_t *b)
{
    for (size_t i = 0; i < 16; i++)
        if (a[i] != b[i])
            return 0;
    return 1;
}

static uint32_t u32_at(const uint8_t *at)
{
    return at[0] | (uint32_t)at[1] << 8 | (uint32_t)at[2] << 16 | (uint32_t)at[3] << 24;
}

/* Find the disk's key in the secret table; every length is checked against what is really there. */
static const uint8_t *find_key(size_t size, size_t *key_size)
{
    size_t total, at = HEADER;
    if (size < HEADER || !same(table, TABLE_GUID))
        return NULL;
    total = u32_at(table + 16);
    if (total < HEADER || total > size)
        return NULL;
    while (total - at >= HEADER) {
        size_t length = u32_at(table + at + 16);
        if (length < HEADER || length > total - at)
            return NULL;
        if (same(table + at, KEY_GUID)) {
            *key_size = length - HEADER;
            return table + at + HEADER;
        }
        at += length;
    }
    return NULL;
}

static char *put(char *to, const char *text)
{
    while (*text)
        *to++ = *text++;
    return to;
}

static char *put_number(char *to, uint64_t value)
{
    char digits[20];
    size_t n = 0;
    do
        digits[n++] = (char)('0' + value % 10);
    while (value /= 10);
    while (n)
        *to++ = digits[--n];
    return to;
}

static void begin(const char *name, uint32_t size)
{
    memset(&request.head, 0, sizeof request.head);
    request.head.version[0] = DM_VERSION_MAJOR;
    request.head.data_size = size;
    request.head.data_start = sizeof request.head;
    for (size_t i = 0; name[i] && i < sizeof request.head.name - 1; i++)
        request.head.name[i] = name[i];
}

static long load_table(long control, const char *name, const char *device, uint64_t bytes, const uint8_t *key,
                       size_t key_size)
{
    struct dm_target_spec *target = (struct dm_target_spec *)request.data;
    char *at = (char *)request.data + sizeof *target;

    begin(name, sizeof request);
    request.head.target_count = 1;
    request.head.flags = DM_SECURE_DATA_FLAG; /* the kernel wipes its copy */
    target->length = bytes / SECTOR;
    put(target->target_type, "crypt");
    at = put(at, "aes-xts-plain64 ");
    for (size_t i = 0; i < key_size; i++) {
        *at++ = "0123456789abcdef"[key[i] >> 4];
        *at++ = "0123456789abcdef"[key[i] & 15];
    }
    at = put(at, " 0 ");
    at = put(at, device);
    at = put(at, " 0");
    *at++ = 0;
    target->next = (uint32_t)(at - (char *)request.data);
    return call(__NR_ioctl, control, DM_TABLE_LOAD, (long)&request);
}

static int unlock(const char *device, const char *name)
{
    const uint8_t *key;
    uint64_t bytes = 0;
    size_t key_size = 0;
    long file, control, size;
    char line[64] = {0}, *end;

    file = call(__NR_open, (long)"/secret/table", O_RDONLY, 0);
    size = file < 0 ? 0 : call(__NR_read, file, (long)table, TABLE_ROOM);
    if (size <= 0 || !u32_at(table))
        leave(2, "nobody injected a secret: /secret/table is empty");
    key = find_key((size_t)size, &key_size);
    if (!key)
        leave(1, "/secret/table holds no key for a disk (GUID 736869e5-84f0-4973-92ec-06879ce3da0b)");
    if (key_size != 32 && key_size != 64)
        leave(1, "the key has neither 32 nor 64 bytes, as aes-xts wants it");
    if (length_of(device) > 64 || length_of(name) > 64)
        leave(1, "the device's path or name is too long");

    file = call(__NR_open, (long)device, O_RDONLY, 0);
    if (file < 0 || call(__NR_ioctl, file, BLKGETSIZE64, (long)&bytes) < 0 || bytes < SECTOR)
        leave(1, "there is no such block device");
    control = call(__NR_open, (long)"/dev/mapper/control", O_RDWR, 0);
    if (control < 0)
        leave(1, "the kernel has no device mapper: is dm-mod inserted?");

    begin(name, sizeof request.head);
    if (call(__NR_ioctl, control, DM_DEV_CREATE, (long)&request) < 0)
        leave(1, "a device of this name cannot be made: is there one already?");
    if (load_table(control, name, device, bytes, key, key_size) < 0) {
        begin(name, sizeof request.head);
        call(__NR_ioctl, control, DM_DEV_REMOVE, (long)&request);
        leave(1, "the kernel refuses the table: are dm-crypt, xts and aes there?");
    }
    wipe();
    begin(name, sizeof request.head);
    if (call(__NR_ioctl, control, DM_DEV_SUSPEND, (long)&request) < 0) /* without the flag it resumes */
        leave(1, "the device cannot be started");

    end = put(line, "/dev/dm-");
    end = put_number(end, request.head.dev & 0xff);
    end = put(end, " is open\n");
    say(line);
    return 0;
}

__attribute__((used)) static void start(const long *stack)
{
    if (stack[0] != 3)
        leave(1, "usage: unlock DEVICE NAME");
    call(__NR_exit_group, unlock((const char *)stack[2], (const char *)stack[3]), 0, 0);
}

__asm__(".globl _start\n_start:\n\txor %ebp, %ebp\n\tmov %rsp, %rdi\n\tand $-16, %rsp\n\tcall start\n");
