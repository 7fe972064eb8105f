/* A program that knows nothing of cbit: it launches an encrypted virtual machine as the kernel's header describes
 * it, and prints a transcript in which nothing is random.
 *
 *   kvm_client                         alone: every sub-command of a launch, right and wrong
 *   kvm_client GODH SESSION IMAGE OUT  for an owner: writes API, build and measurement to OUT, waits for a line on
 *                                      standard input, injects OUT.hdr and OUT.bin into the image's second page */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>
#include <linux/kvm.h>
#include <linux/psp-sev.h>

enum { PAGE = 4096, SIZE = 16 * PAGE };

static int sev, kvm, vm;
static unsigned char *memory;

static int op_on(const char *name, int fd, uint32_t id, void *data, int sev_fd) {
    struct kvm_sev_cmd it = {.id = id, .data = (uintptr_t)data, .error = 99, .sev_fd = sev_fd};
    int result = ioctl(fd, KVM_MEMORY_ENCRYPT_OP, &it);
    printf("%s: %s, error %u\n", name, result ? strerrorname_np(errno) : "ok", it.error);
    return result;
}

static int op(const char *name, uint32_t id, void *data) { return op_on(name, vm, id, data, sev); }

static void said(const char *name, int result) { printf("%s: %s\n", name, result < 0 ? strerrorname_np(errno) : "ok"); }

static unsigned guests(void) {
    struct sev_user_data_status status = {0};
    struct sev_issue_cmd it = {.cmd = SEV_PLATFORM_STATUS, .data = (uintptr_t)&status};
    return ioctl(sev, SEV_ISSUE_CMD, &it) ? 999 : status.guest_count;
}

static void update(const char *name, void *at, uint32_t length) {
    struct kvm_sev_launch_update_data it = {(uintptr_t)at, length};
    op(name, KVM_SEV_LAUNCH_UPDATE_DATA, &it);
}

static void status(void) {
    struct kvm_sev_guest_status it = {0};
    op("guest", KVM_SEV_GUEST_STATUS, &it);
    printf("  state %u, policy %#x, handle %d\n", it.state, it.policy, it.handle != 0);
}

static uint32_t measure(const char *name, void *at, uint32_t length) {
    struct kvm_sev_launch_measure it = {(uintptr_t)at, length};
    op(name, KVM_SEV_LAUNCH_MEASURE, &it);
    printf("  length %u\n", it.len);
    return it.len;
}

static void region(const char *name, unsigned long request, void *at, uint64_t size) {
    struct kvm_enc_region it = {(uintptr_t)at, size};
    said(name, ioctl(vm, request, &it));
}

static void create(void) {
    vm = ioctl(kvm, KVM_CREATE_VM, 0);
    struct kvm_userspace_memory_region it = {.memory_size = SIZE, .userspace_addr = (uintptr_t)memory};
    said("machine", vm);
    said("memory", ioctl(vm, KVM_SET_USER_MEMORY_REGION, &it));
}

static void debug(const char *name, uint32_t id, void *from, void *to, uint32_t length) {
    struct kvm_sev_dbg it = {(uintptr_t)from, (uintptr_t)to, length};
    op(name, id, &it);
}

static void secret(const char *name, void *header, uint32_t header_len, void *packet, uint32_t length, void *where) {
    struct kvm_sev_launch_secret it = {.hdr_uaddr = (uintptr_t)header, .hdr_len = header_len,  /* later headers name the padding */
        .guest_uaddr = (uintptr_t)where, .guest_len = length, .trans_uaddr = (uintptr_t)packet, .trans_len = length};
    op(name, KVM_SEV_LAUNCH_SECRET, &it);
}

static void alone(void) {
    struct kvm_sev_launch_start start = {0};
    struct kvm_sev_attestation_report report = {{0}, 0, 0};
    unsigned char blob[48], header[52] = {0}, packet[16] = {0}, was[2 * PAGE], seen[32];
    unsigned char text[] = "sixteen letters.sixteen numbers.";
    said("probe", ioctl(vm, KVM_MEMORY_ENCRYPT_OP, 0));
    op("start too early", KVM_SEV_LAUNCH_START, &start);
    op("no such sub-command", 99, 0);
    op("init", KVM_SEV_INIT, 0);
    op("init again", KVM_SEV_INIT, 0);
    said("processor", ioctl(vm, KVM_CREATE_VCPU, 0));
    region("region", KVM_MEMORY_ENCRYPT_REG_REGION, memory, SIZE);
    region("no region", KVM_MEMORY_ENCRYPT_REG_REGION, memory, 0);
    region("another region back", KVM_MEMORY_ENCRYPT_UNREG_REGION, memory, PAGE);
    op("start at a bad address", KVM_SEV_LAUNCH_START, (void *)8);
    start.policy = 0x100;
    op("start, policy of tomorrow", KVM_SEV_LAUNCH_START, &start);
    start.policy = 0;
    op_on("start without /dev/sev", vm, KVM_SEV_LAUNCH_START, &start, 99);
    op_on("start with another file", vm, KVM_SEV_LAUNCH_START, &start, kvm);
    op("start", KVM_SEV_LAUNCH_START, &start);
    status();
    for (int i = 0; i < 2 * PAGE; i++) memory[i] = was[i] = i / 16;
    update("update", memory, 2 * PAGE);
    printf("  pages changed %d\n", memcmp(memory, was, sizeof was) != 0);
    update("update of part of a block", memory + 2 * PAGE, 8);
    update("update of nothing", memory, 0);
    update("update at a bad address", (void *)PAGE, PAGE);
    measure("measure asked", 0, 0);
    measure("measure", blob, sizeof blob);
    update("update too late", memory + 3 * PAGE, PAGE);
    secret("secret of nobody", header, sizeof header, packet, sizeof packet, memory + 3 * PAGE);
    op("finish", KVM_SEV_LAUNCH_FINISH, 0);
    op("finish again", KVM_SEV_LAUNCH_FINISH, 0);
    status();
    op("report asked", KVM_SEV_GET_ATTESTATION_REPORT, &report);
    printf("  length %u\n", report.len);
    debug("decrypt", KVM_SEV_DBG_DECRYPT, memory + 64, seen, sizeof seen);
    printf("  as it was %d\n", !memcmp(seen, was + 64, sizeof seen));
    debug("encrypt", KVM_SEV_DBG_ENCRYPT, text, memory + 128, 32);
    debug("decrypt", KVM_SEV_DBG_DECRYPT, memory + 128, seen, sizeof seen);
    printf("  as it was written %d\n", !memcmp(seen, text, 32));
    region("region back", KVM_MEMORY_ENCRYPT_UNREG_REGION, memory, SIZE);
    printf("guests %u\n", guests());
    close(vm);
    create();
    unsigned left = guests();
    for (int i = 0; i < 1000 && left; i++) usleep(1000), left = guests();
    printf("guests %u\n", left);
    op("init", KVM_SEV_INIT, 0);
    op("start, sharing with nobody", KVM_SEV_LAUNCH_START, &start);
    start.handle = 0;
    op("start", KVM_SEV_LAUNCH_START, &start);
    printf("guests %u\n", guests());
}

static uint32_t load(const char *path, void *room, size_t size) {
    FILE *file = fopen(path, "rb");
    if (!file) perror(path), exit(1);
    uint32_t length = fread(room, 1, size, file);
    fclose(file);
    return length;
}

static int owned(char **word) {
    unsigned char godh[0x1000], session[0x1000], blob[48], header[64], packet[PAGE], line[8];
    char path[4096];
    struct kvm_sev_launch_start start = {.policy = 1, .dh_uaddr = (uintptr_t)godh, .session_uaddr = (uintptr_t)session};
    start.dh_len = load(word[1], godh, sizeof godh);
    start.session_len = load(word[2], session, sizeof session);
    uint32_t length = load(word[3], memory, SIZE);
    op("init", KVM_SEV_INIT, 0);
    if (op("start", KVM_SEV_LAUNCH_START, &start)) return 1;
    update("update", memory, length);
    measure("measure", blob, sizeof blob);
    FILE *out = fopen(word[4], "wb");
    fwrite(blob, 1, sizeof blob, out);
    fclose(out);
    fflush(stdout);
    if (read(0, line, sizeof line) < 1) return 1;
    snprintf(path, sizeof path, "%s.hdr", word[4]);
    uint32_t header_len = load(path, header, sizeof header);
    snprintf(path, sizeof path, "%s.bin", word[4]);
    uint32_t packet_len = load(path, packet, sizeof packet);
    header[40] ^= 1;
    secret("secret, a bit flipped", header, header_len, packet, packet_len, memory + 4 * PAGE);
    header[40] ^= 1;
    secret("secret", header, header_len, packet, packet_len, memory + 4 * PAGE);
    op("finish", KVM_SEV_LAUNCH_FINISH, 0);
    printf("secret is readable here %d\n", memmem(memory + 4 * PAGE, PAGE, "the disk's key", 14) != 0);
    status();
    return 42;
}

int main(int words, char **word) {
    memory = mmap(0, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    sev = open("/dev/sev", O_RDWR | O_CLOEXEC);
    kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC);
    if (sev < 0 || kvm < 0) return perror("open"), 1;
    printf("version %d\n", ioctl(kvm, KVM_GET_API_VERSION, 0));
    create();
    if (words == 5) return owned(word);
    alone();
    return 42;
}
