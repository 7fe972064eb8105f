/* Asks /dev/sev and /dev/kvm for anything: fuzz_client SEED CALLS CLIENTS NTH.  Every NTH client is killed on its
 * way.  What the answers are does not matter here; that there are answers does: they are counted.  Whoever answers
 * is this program's parent, and has as many descriptors at the end as at the start. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>
#include <linux/kvm.h>
#include <linux/psp-sev.h>

enum { PAGE = 4096, ARENA = 16 * PAGE, DESCRIPTORS = 12 };

static unsigned char *arena; /* a page that is not there follows */
static uint64_t state;
static int have[DESCRIPTORS], count;

static uint64_t draw(void) { /* splitmix64 */
    uint64_t z = state += 0x9E3779B97F4A7C15;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9;
    z = (z ^ z >> 27) * 0x94D049BB133111EB;
    return z ^ z >> 31;
}

static uint64_t below(uint64_t limit) { return draw() % limit; }

static uint64_t pointer(void) {
    switch (below(8)) {
    case 0: return 0;
    case 1: return 8;
    case 2: return draw();
    case 3: return 0xffffffff81000000u | 0xffffffff00000000u;
    case 4: return (uintptr_t)arena + ARENA - below(64);
    default: return (uintptr_t)arena + below(ARENA / 16) * 16;
    }
}

static uint32_t length(void) {
    static const uint32_t some[] = {0,    1,      16,     32,     48,     52,      63,        64,         0x824,
                                    4096, 0x186c, 0x2000, 0x4000, 0x4001, 0x10000, 0x7fffffff, 0xffffffff, 0x100000};
    return some[below(sizeof some / sizeof *some)];
}

static void *structure(void) { /* 96 bytes of pointers, lengths and noise */
    unsigned char *at = arena + below(ARENA / PAGE - 1) * PAGE;
    for (int i = 0; i < 24; i += 2) {
        uint64_t word = below(3) ? pointer() : length() | (uint64_t)length() << 32;
        if (!below(4)) word = length();
        memcpy(at + 4 * i, &word, 8);
    }
    if (below(2)) { /* packed structures have their pointers elsewhere */
        uint64_t word = pointer();
        uint32_t size = length();
        memcpy(at, &word, 8), memcpy(at + 8, &size, 4), memcpy(at + 12, &word, 8), memcpy(at + 20, &size, 4);
    }
    return at;
}

static int descriptor(void) { return below(16) ? have[below(count)] : (int)below(64); }

static void keep(int fd) {
    if (fd < 0) return;
    if (count < DESCRIPTORS) { have[count++] = fd; return; }
    int at = 2 + below(DESCRIPTORS - 2);
    close(have[at]);
    have[at] = fd;
}

static void call(void) {
    static const unsigned long others[] = {
        KVM_GET_MSR_INDEX_LIST, KVM_GET_SUPPORTED_CPUID, KVM_CHECK_EXTENSION, KVM_CREATE_IRQCHIP, KVM_GET_IRQCHIP,
        KVM_SET_GSI_ROUTING,    KVM_CREATE_PIT2,         KVM_GET_PIT2,        KVM_GET_DIRTY_LOG,  KVM_SET_REGS,
        KVM_GET_SREGS,          KVM_GET_MSRS,            KVM_SET_MSRS,        KVM_SET_CPUID2,     KVM_GET_CPUID2,
        KVM_GET_XSAVE,          KVM_SET_XSAVE,           KVM_GET_LAPIC,       KVM_ENABLE_CAP,     KVM_RUN};
    static const uint32_t commands[] = {1, 1, 1, 3, 5, 6, 7, 8, 9, 10, 11, 12, 13, 0x80000001};
    struct sev_issue_cmd issue = {.cmd = commands[below(14)], .data = (uintptr_t)structure(), .error = 7};
    struct kvm_sev_cmd op = {.id = below(25), .data = (uintptr_t)structure(), .sev_fd = have[0]};
    if (!below(40)) issue.cmd = below(5); /* those that make keys or forget them are slow */
    if (!below(8)) issue.data = pointer();
    if (!below(8)) op.data = pointer();
    if (!below(32)) op.sev_fd = draw();
    if (!below(200)) op.id = draw();
    int fd = descriptor();
    switch (below(16)) {
    case 0: ioctl(fd, SEV_ISSUE_CMD, pointer()); break;
    case 1: case 2: case 3: case 4: case 5: ioctl(have[0], SEV_ISSUE_CMD, &issue); break;
    case 6: ioctl(fd, KVM_MEMORY_ENCRYPT_OP, pointer()); break;
    case 7: case 8: case 9: case 10: ioctl(fd, KVM_MEMORY_ENCRYPT_OP, &op); break;
    case 11: ioctl(fd, below(2) ? KVM_MEMORY_ENCRYPT_REG_REGION : KVM_MEMORY_ENCRYPT_UNREG_REGION, structure()); break;
    case 12:
        if (below(2)) ioctl(fd, KVM_SET_USER_MEMORY_REGION, structure());
        else ioctl(fd, others[below(sizeof others / sizeof *others)], below(4) ? (uintptr_t)structure() : pointer());
        break;
    case 13: keep(dup(fd)); break;
    case 14: keep(ioctl(have[1], KVM_CREATE_VM, below(8) ? 0 : draw())); break;
    default: keep(ioctl(fd, KVM_CREATE_VCPU, below(70)));
    }
}

static int descriptors(void) { /* of the launcher */
    char path[64];
    int found = 0;
    snprintf(path, sizeof path, "/proc/%d/fd", (int)getppid());
    DIR *folder = opendir(path);
    if (!folder) return -1;
    while (readdir(folder)) found++;
    closedir(folder);
    return found;
}

static int settle(int before) { /* it hears of an end a moment after it */
    int after = descriptors();
    for (int i = 0; i < 500 && after > before; i++, after = descriptors()) usleep(20000);
    return after;
}

int main(int words, char **word) {
    if (words != 5) return 2;
    long seed = atol(word[1]), calls = atol(word[2]), clients = atol(word[3]), nth = atol(word[4]);
    int before = descriptors();
    long *made = mmap(0, clients * sizeof *made, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    arena = mmap(0, ARENA + PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mprotect(arena + ARENA, PAGE, PROT_NONE);
    pid_t child[1024];
    for (long i = 0; i < clients; i++)
        if (!(child[i] = fork())) {
            state = seed * 1000003 + i;
            have[count++] = open("/dev/sev", O_RDWR);
            have[count++] = open("/dev/kvm", O_RDWR);
            if (have[0] < 0 || have[1] < 0) return 1;
            for (long j = 0; j < calls / clients; j++, made[i]++) call();
            return 0;
        }
    state = seed;
    for (long i = nth - 1; i < clients; i += nth) {
        usleep(below(40000 / clients * nth));
        kill(child[i], SIGKILL);
    }
    int bad = 0, status;
    long sum = 0;
    for (long i = 0; i < clients; i++) {
        waitpid(child[i], &status, 0);
        int killed = i % nth == nth - 1 && WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL;
        bad += !killed && (!WIFEXITED(status) || WEXITSTATUS(status));
        sum += made[i];
    }
    printf("%d bad, %d descriptors left, %ld calls\n", bad, settle(before) - before, sum);
    return bad ? 1 : 0;
}
