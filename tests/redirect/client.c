/* A program that knows nothing of cbit: it uses /dev/sev and /dev/sev-guest as the kernel's headers describe.
 * client WHAT [ARGUMENT…]; without a word it walks everything and prints a transcript, the same under every
 * mechanism. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>
#include <linux/kvm.h>
#include <linux/psp-sev.h>
#include <linux/sev-guest.h>

enum { ECHO = 1, FAIL, REFUSE, EXPLODE, BULK, SUICIDE };

static const char *said(long result) { return result < 0 ? strerrorname_np(errno) : "ok"; }

static int issue_at(int fd, unsigned long request, uint32_t command, void *data, uint32_t *error) {
    struct sev_issue_cmd it = {.cmd = command, .data = (uintptr_t)data, .error = 99};
    int result = ioctl(fd, request, &it);
    if (error) *error = it.error;
    return result;
}

/* Echo 16 bytes: 0 if they came back complemented. */
static int echo(int fd) {
    unsigned char data[24] = "sixteen bytes :)";
    uint32_t error;
    if (issue_at(fd, SEV_ISSUE_CMD, ECHO, data, &error) || error) return -1;
    for (int i = 0; i < 16; i++)
        if ((data[i] ^ 0xFF) != "sixteen bytes :)"[i]) { errno = EBADMSG; return -1; }
    return 0;
}

static void *many_opens(void *count) {
    long bad = 0;
    for (long i = 0; i < (long)count; i++) {
        int fd = open("/dev/sev", O_RDWR);
        if (fd < 0 || echo(fd)) bad++;
        close(fd);
    }
    return (void *)bad;
}

static void threads(long number, long each) {
    pthread_t all[64];
    long bad = 0;
    for (int i = 0; i < number; i++) pthread_create(all + i, 0, many_opens, (void *)each);
    for (int i = 0; i < number; i++) { void *one; pthread_join(all[i], &one); bad += (long)one; }
    printf("%ld threads, %ld opens each: %ld bad\n", number, each, bad);
}

static void show(const char *path) {
    struct stat it = {0}, link = {0};
    struct statx more = {0};
    int result = stat(path, &it);
    printf("%s: stat %s type %o; ", path, said(result), it.st_mode & S_IFMT);
    result = lstat(path, &link);
    printf("lstat %s type %o; ", said(result), link.st_mode & S_IFMT);
    result = syscall(SYS_statx, AT_FDCWD, path, AT_SYMLINK_NOFOLLOW, STATX_BASIC_STATS, &more);
    printf("statx %s type %o size %llu; ", said(result), more.stx_mode & S_IFMT, more.stx_size);
    result = syscall(SYS_stat, path, &it);
    printf("raw stat %s rdev %lx\n", said(result), S_ISCHR(it.st_mode) ? it.st_rdev : 0);
    printf("%s: access R %s, ", path, said(access(path, R_OK)));
    printf("X %s, ", said(access(path, X_OK)));
    printf("9 %s, ", said(access(path, 9)));
    printf("faccessat2 %s, ", said(syscall(SYS_faccessat2, AT_FDCWD, path, F_OK, 0)));
    char *whole = realpath(path, 0);
    printf("realpath %s\n", whole ? whole : said(-1));
    free(whole);
}

static void read_text(const char *path) {
    char text[8] = {0};
    int fd = open(path, O_RDONLY), got = fd < 0 ? -1 : (int)read(fd, text, 7);
    printf("%s: %s %d %.1s\n", path, said(fd), got, text);
    close(fd);
}

static void ways_to_open(void) {
    struct { uint64_t flags, mode, resolve; } how = {O_RDWR, 0, 0};
    int directory = open("/dev", O_RDONLY | O_DIRECTORY | O_PATH), fd;
    printf("open O_RDONLY: %s\n", said(echo(open("/dev/sev", O_RDONLY))));
    printf("open O_WRONLY: %s\n", said(echo(open("/dev/sev", O_WRONLY))));
    fd = syscall(SYS_open, "/dev/sev", O_RDWR | O_CLOEXEC);
    printf("open itself: %s, close on exec %d, access mode %d\n", said(echo(fd)), fcntl(fd, F_GETFD) & FD_CLOEXEC,
           fcntl(fd, F_GETFL) & O_ACCMODE);
    printf("openat a directory: %s\n", said(echo(openat(directory, "sev", O_RDWR))));
    printf("openat2: %s\n", said(echo(syscall(SYS_openat2, AT_FDCWD, "/dev//./sev", &how, sizeof how))));
    how.resolve = 8; /* RESOLVE_BENEATH */
    printf("openat2 beneath: %s\n", said(syscall(SYS_openat2, AT_FDCWD, "/dev/sev", &how, sizeof how)));
    printf("openat2 without a how: %s\n", said(syscall(SYS_openat2, AT_FDCWD, "/dev/sev", (void *)8, sizeof how)));
    if (chdir("/dev")) perror("chdir");
    printf("relative: %s\n", said(echo(open("./sev", O_RDWR))));
    printf("through ..: %s\n", said(echo(open("/sys/../dev/shm/../sev", O_RDWR))));
    printf("exclusive: %s\n", said(open("/dev/sev", O_RDWR | O_CREAT | O_EXCL, 0600)));
    printf("as a directory: %s\n", said(open("/dev/sev", O_RDONLY | O_DIRECTORY)));
    printf("a neighbour: %s\n", said(open("/dev/sev2", O_RDWR)));
    printf("another sev: %s\n", said(open("/tmp/no-such-folder/sev", O_RDWR)));
    printf("a bad path: %s\n", said(open((char *)8, O_RDWR)));
    struct stat it;
    fd = open("/dev/sev", O_RDWR);
    printf("fstat %s, ", said(fstat(fd, &it)));
    printf("character device %d; ", S_ISCHR(it.st_mode));
    printf("read at the end of file: %zd\n", read(open("/sys/module/kvm_amd/parameters/sev", O_RDONLY), &it, 0));
}

static void descriptors(char *self) {
    int fd = open("/dev/sev", O_RDWR), other = open("/etc/passwd", O_RDONLY), copy = dup(fd), pair[2];
    printf("dup: %s\n", said(echo(copy)));
    close(fd);
    printf("the first closed: %s\n", said(echo(copy)));
    printf("a closed number: %s\n", said(issue_at(fd, SEV_ISSUE_CMD, ECHO, 0, 0)));
    printf("no number at all: %s\n", said(issue_at(-1, SEV_ISSUE_CMD, ECHO, 0, 0)));
    printf("a foreign file: %s\n", said(issue_at(other, SEV_ISSUE_CMD, ECHO, 0, 0)));
    printf("standard input: %s\n", said(issue_at(0, SEV_ISSUE_CMD, ECHO, 0, 0)));
    dup2(other, copy);
    printf("the number of another file: %s\n", said(echo(copy)));
    fd = open("/dev/sev", O_RDWR);
    printf("another request: %s\n", said(ioctl(fd, FIONREAD, &pair)));
    printf("a request of the other device: %s\n", said(ioctl(fd, SNP_GET_REPORT, &pair)));
    printf("sign-extended: %s\n", said(issue_at(fd, 0xFFFFFFFF00000000ul | SEV_ISSUE_CMD, FAIL, 0, 0)));
    if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair)) perror("socketpair");
    fflush(stdout);
    pid_t child = fork();
    if (!child) {
        char control[CMSG_SPACE(sizeof(int))] = {0}, byte;
        struct iovec span = {&byte, 1};
        struct msghdr message = {.msg_iov = &span, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
        int result = echo(fd) ? 1 : recvmsg(pair[1], &message, 0) < 0 ? 2 : 0, sent;
        memcpy(&sent, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof sent);
        if (!result && echo(sent)) result = 3;
        if (result) _exit(result);
        dup2(sent, 77);
        execl(self, self, "inherited", "77", NULL);
        _exit(4);
    }
    char control[CMSG_SPACE(sizeof(int))] = {0}, byte = 1;
    struct iovec span = {&byte, 1};
    struct msghdr message = {.msg_iov = &span, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control};
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    int sent = open("/dev/sev", O_RDWR), status;
    header->cmsg_level = SOL_SOCKET, header->cmsg_type = SCM_RIGHTS, header->cmsg_len = CMSG_LEN(sizeof sent);
    memcpy(CMSG_DATA(header), &sent, sizeof sent);
    sendmsg(pair[0], &message, 0);
    waitpid(child, &status, 0);
    printf("fork, a descriptor through a socket, exec: %d\n", status);
}

static void answers(void) {
    int fd = open("/dev/sev", O_RDWR), guest = open("/dev/sev-guest", O_RDWR);
    unsigned char data[24] = {0}, asked[96] = "a nonce of the guest's", report[4000];
    uint32_t error;
    uint64_t count;
    printf("EIO and an error field: %s", said(issue_at(fd, SEV_ISSUE_CMD, FAIL, data, &error)));
    printf(" %u\n", error);
    printf("errno of the device: %s\n", said(issue_at(fd, SEV_ISSUE_CMD, REFUSE, data, 0)));
    printf("a fault of the device: %s\n", said(issue_at(fd, SEV_ISSUE_CMD, EXPLODE, data, 0)));
    printf("and it lives: %s\n", said(echo(fd)));
    printf("a bad argument: %s\n", said(ioctl(fd, SEV_ISSUE_CMD, (void *)8)));
    printf("a bad pointer: %s\n", said(issue_at(fd, SEV_ISSUE_CMD, ECHO, (void *)16, 0)));
    printf("a pointer at the top: %s\n", said(issue_at(fd, SEV_ISSUE_CMD, ECHO, (void *)-8l, 0)));
    char *page = mmap(0, 8192, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    munmap(page + 4096, 4096);
    printf("across the end: %s\n", said(issue_at(fd, SEV_ISSUE_CMD, ECHO, page + 4090, 0)));
    strcpy(page + 4096 - 9, "/dev/sev");
    printf("a path at the end of memory: %s\n", said(echo(open(page + 4096 - 9, O_RDWR))));
    mprotect(page, 4096, PROT_READ);
    printf("memory that may not be written: %s\n", said(issue_at(fd, SEV_ISSUE_CMD, ECHO, page, 0)));
    struct snp_guest_request_ioctl request = {.msg_version = 1, .req_data = (uintptr_t)asked, .resp_data = (uintptr_t)report};
    printf("a report of 4000 bytes: %s ", said(ioctl(guest, SNP_GET_REPORT, &request)));
    printf("%s\n", memcmp(report + 32, asked, 64) ? "wrong" : "right");
    uint64_t size = 5 << 20, span[2], wrong = 0;
    unsigned char *bulk = malloc(size);
    for (uint64_t i = 0; i < size; i++) bulk[i] = i * 7 + (i >> 12);
    span[0] = (uintptr_t)bulk, span[1] = size;
    printf("5 MiB: %s ", said(issue_at(fd, SEV_ISSUE_CMD, BULK, span, 0)));
    for (uint64_t i = 0; i < size; i++) {
        uint64_t j = size - 1 - i;
        wrong += bulk[i] != (unsigned char)(j * 7 + (j >> 12));
    }
    printf("%lu wrong\n", wrong);
    span[1] = 1ul << 62;
    printf("2^62 bytes: %s\n", said(issue_at(fd, SEV_ISSUE_CMD, BULK, span, 0)));
    issue_at(fd, SEV_ISSUE_CMD, ECHO, data, 0);
    memcpy(&count, data + 16, 8);
    printf("commands of this process: %lu\n", count);
}

static volatile long alarms;
static void on_alarm(int number) { (void)number; alarms++; }

static void under_a_timer(long calls) {
    struct sigaction action = {.sa_handler = on_alarm, .sa_flags = SA_RESTART};
    struct itimerval timer = {{0, 300}, {0, 300}}, none = {0};
    int fd = open("/dev/sev", O_RDWR), bad = 0;
    sigaction(SIGALRM, &action, 0);
    setitimer(ITIMER_REAL, &timer, 0);
    for (long i = 0; i < calls; i++) bad += echo(fd) != 0;
    setitimer(ITIMER_REAL, &none, 0);
    printf("%ld calls, %d bad, signals %s\n", calls, bad, alarms > 10 ? "many" : "few");
}

static void daemon_of_mine(const char *done) {
    int fd = open("/dev/sev", O_RDWR);
    struct pollfd main_program = {syscall(SYS_pidfd_open, getpid(), 0), POLLIN, 0};
    if (fork()) return;
    setsid();
    if (fork()) _exit(0);
    poll(&main_program, 1, -1); /* until it has ended, whether anybody waits for it or not */
    int result = echo(fd);
    int out = open(done, O_WRONLY | O_CREAT, 0644);
    dprintf(out, "%s", said(result));
    _exit(0);
}

int main(int count, char **words) {
    const char *what = count > 1 ? words[1] : "walk";
    long number = count > 2 ? atol(words[2]) : 0;
    setvbuf(stdout, 0, _IOLBF, 0);
    if (!strcmp(what, "walk")) {
        ways_to_open();
        show("/dev/sev");
        show("/sys/module/kvm_amd/parameters/sev");
        show("/sys/module/kvm_amd/parameters/sev_snp");
        read_text("/sys/module/kvm_amd/parameters/sev");
        read_text("/sys/module/kvm_amd/parameters/sev_es");
        printf("a directory above: %s\n", said(access("/sys/module/kvm_amd", F_OK)));
        descriptors("/proc/self/exe");
        answers();
        threads(4, 50);
    } else if (!strcmp(what, "inherited")) {
        return echo(number) ? 9 : 0;
    } else if (!strcmp(what, "threads")) {
        threads(number, 200);
    } else if (!strcmp(what, "timer")) {
        under_a_timer(number);
    } else if (!strcmp(what, "exit")) {
        return number;
    } else if (!strcmp(what, "die")) {
        struct rlimit none = {0, 0};
        setrlimit(RLIMIT_CORE, &none);
        raise(number);
    } else if (!strcmp(what, "suicide")) { /* the device kills us while it serves us */
        char data[16];
        issue_at(open("/dev/sev", O_RDWR), SEV_ISSUE_CMD, SUICIDE, data, 0);
    } else if (!strcmp(what, "wait-for")) { /* says when it is ready, and which signal came */
        sigset_t set;
        int got;
        sigemptyset(&set), sigaddset(&set, number);
        sigprocmask(SIG_BLOCK, &set, 0);
        printf("ready %d\n", getpid());
        sigwait(&set, &got);
        printf("got %d\n", got);
    } else if (!strcmp(what, "interrupted")) { /* how often a Ctrl-C arrives */
        struct timespec soon = {0, 300000000};
        sigset_t set;
        int times = 0;
        sigemptyset(&set), sigaddset(&set, SIGINT);
        sigprocmask(SIG_BLOCK, &set, 0);
        puts("ready");
        if (sigwaitinfo(&set, 0) == SIGINT) times++;
        while (sigtimedwait(&set, 0, &soon) == SIGINT) times++;
        printf("%d times\n", times);
    } else if (!strcmp(what, "clients")) { /* many processes at once, half of them killed */
        int status, bad = 0, killed = 0;
        pid_t child[64];
        for (int i = 0; i < number; i++)
            if (!(child[i] = fork())) {
                int fd = open("/dev/sev", O_RDWR), wrong = 0;
                if (i % 2) for (;;) wrong += echo(fd) != 0;
                for (int j = 0; j < 50; j++) wrong += echo(fd) != 0;
                _exit(wrong);
            }
        for (int i = 0; i < number; i += 2) { waitpid(child[i], &status, 0); bad += status != 0; }
        for (int i = 1; i < number; i += 2) kill(child[i], SIGKILL);
        for (int i = 1; i < number; i += 2) { waitpid(child[i], &status, 0); killed += WIFSIGNALED(status); }
        printf("%ld clients: %d bad, %d killed\n", number, bad, killed);
    } else if (!strcmp(what, "orphan")) { /* the launcher is killed: so are we */
        printf("ready %d\n", getpid());
        for (;;) pause();
    } else if (!strcmp(what, "daemon")) {
        daemon_of_mine(words[2]);
        return 5;
    } else if (!strcmp(what, "abandoned")) { /* outlives its launcher, who has ended when we have */
        daemon_of_mine(words[2]);
        printf("ready %d\n", getpid());
        for (;;) pause();
    } else if (!strcmp(what, "file")) { /* what a file that is served does beside its requests */
        char byte = 0;
        struct stat it;
        int fd = open("/dev/sev", O_RDWR | O_CREAT | O_TRUNC, 0600), n;
        printf("truncated: %s, %s\n", said(fd), said(echo(fd)));
        printf("read: %s, ", said(read(fd, &byte, 1)));
        printf("write: %s\n", said(write(fd, &byte, 1)));
        printf("lseek: %s, ", said(lseek(fd, 0, SEEK_CUR)));
        printf("ftruncate: %s, ", said(ftruncate(fd, 4096)));
        fstat(fd, &it);
        printf("size %ld\n", (long)it.st_size);
        printf("mmap shared: %s, ", said((long)mmap(0, 4096, PROT_READ, MAP_SHARED, fd, 0)));
        void *page = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE, fd, 0);
        printf("a page of itself: %s\n", said(issue_at(fd, SEV_ISSUE_CMD, ECHO, page, 0)));
        printf("where nobody may look: %s\n", said(ioctl(fd, _IOWR('T', 1, char[16000]), 8)));
        printf("a request of no bytes: %s, ", said(ioctl(fd, _IO('S', 0), &n)));
        printf("one to be read only: %s\n", said(ioctl(fd, _IOR('S', 0, char[16]), &byte - 64)));
        char *low = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
        long result; /* the same call by the entry of 32-bit programs; a kernel without that entry ends us */
        __asm__ volatile("int $0x80" : "=a"(result) : "a"(54), "b"(fd), "c"(SEV_ISSUE_CMD), "d"(low) : "memory");
        errno = -result;
        printf("as a 32-bit program: %s\n", said(result < 0 ? -1 : result));
        printf("chmod: %s, ", said(chmod("/dev/sev", 0640)));
        fstat(fd, &it);
        printf("mode %o\n", it.st_mode);
        printf("chown: %s, ", said(fchown(fd, 0, 12)));
        fstat(fd, &it);
        printf("group %d\n", it.st_gid);
        printf("chmod with more: %s, ", said(fchmod(fd, 06755)));
        fstat(fd, &it);
        printf("mode %o\n", it.st_mode);
        fflush(stdout);
        if (chmod("/dev/sev", 0600) || setgid(65534) || setuid(65534)) return 9;
        printf("closed to others: %s, ", said(open("/dev/sev", O_RDWR)));
        printf("their chmod: %s, ", said(chmod("/dev/sev", 0666)));
        printf("but what is open is: %s\n", said(echo(fd)));
    } else if (!strcmp(what, "linger")) { /* leaves somebody behind who never ends */
        printf("ready %d\n", getpid());
        pid_t left = fork();
        if (!left) alarm(60), pause(), _exit(0); /* a failed test leaves it no longer than that */
        printf("%d\n", left);
        return 5;
    } else if (!strcmp(what, "see")) {
        printf("%s\n", said(open("/dev/sev", O_RDWR)));
    } else if (!strcmp(what, "limit")) { /* no room for one more descriptor */
        struct rlimit few = {16, 16};
        setrlimit(RLIMIT_NOFILE, &few);
        int fd = 0;
        for (int i = 0; i < 20; i++) fd = open("/dev/sev", O_RDWR);
        printf("%s\n", said(fd));
    } else if (!strcmp(what, "undumpable")) {
        prctl(PR_SET_DUMPABLE, 0);
        int fd = open("/dev/null", O_RDWR);
        printf("%s\n", said(issue_at(fd, SEV_ISSUE_CMD, ECHO, 0, 0)));
    } else if (!strcmp(what, "vm")) { /* a real virtual machine, and the requests on it that are ours */
        int kvm = open("/dev/kvm", O_RDWR), vm = kvm < 0 ? -1 : ioctl(kvm, KVM_CREATE_VM, 0);
        struct kvm_sev_cmd command = {.id = KVM_SEV_INIT, .sev_fd = open("/dev/sev", O_RDWR)};
        if (vm < 0) return 77;
        printf("on a virtual machine: %d\n", ioctl(vm, KVM_MEMORY_ENCRYPT_OP, &command));
        command.sev_fd = 0;
        printf("with another file for /dev/sev: %s\n", said(ioctl(vm, KVM_MEMORY_ENCRYPT_OP, &command)));
        printf("on /dev/kvm: %s\n", said(ioctl(kvm, KVM_MEMORY_ENCRYPT_OP, &command)));
        printf("KVM's own requests: %s\n", said(ioctl(vm, KVM_CHECK_EXTENSION, KVM_CAP_NR_VCPUS)));
    } else if (!strcmp(what, "numbers")) {
        printf("%x %x %x %x %x %x %x %zu\n", (unsigned)SEV_ISSUE_CMD, (unsigned)KVM_MEMORY_ENCRYPT_OP,
               (unsigned)KVM_MEMORY_ENCRYPT_REG_REGION, (unsigned)KVM_MEMORY_ENCRYPT_UNREG_REGION,
               (unsigned)SNP_GET_REPORT, (unsigned)SNP_GET_DERIVED_KEY, (unsigned)SNP_GET_EXT_REPORT,
               sizeof(struct sev_issue_cmd));
    } else {
        return 2;
    }
    return 0;
}
