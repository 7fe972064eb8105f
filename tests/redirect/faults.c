/* Executes an instruction that faults (CLTS) where another program would execute CPUID, from the main thread,
 * other threads, children, and after executing itself; and shows that its own signals are its own. */
#define _GNU_SOURCE
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

static int right(unsigned leaf, unsigned sub) {
    unsigned a = leaf, b, c = sub, d;
    __asm__ volatile("clts" : "+a"(a), "=b"(b), "+c"(c), "=d"(d));
    return a == leaf + 1 && b == leaf + 2 && c == sub + 3 && d == leaf + sub;
}

static void *many(void *wrong) {
    for (unsigned i = 0; i < 100; i++)
        if (!right(i, 7)) ++*(int *)wrong;
    return 0;
}

static sigjmp_buf place;
static void caught(int number) { siglongjmp(place, number); }

int main(int words, char **word) {
    if (words > 1) return right(1, 2) ? 7 : 8;
    printf("here: %d\n", right(0x8000001f, 0));
    pthread_t thread[4];
    int wrong[4] = {0}, status;
    for (int i = 0; i < 4; i++) pthread_create(&thread[i], 0, many, &wrong[i]);
    for (int i = 0; i < 4; i++) pthread_join(thread[i], 0);
    printf("threads: %d wrong\n", wrong[0] + wrong[1] + wrong[2] + wrong[3]);
    fflush(stdout);
    if (!fork()) _exit(right(5, 6) ? 9 : 10);
    wait(&status);
    printf("child: %d\n", WEXITSTATUS(status));
    fflush(stdout);
    if (!fork()) execl("/proc/self/exe", word[0], "again", (char *)0);
    wait(&status);
    printf("another program: %d\n", WEXITSTATUS(status));
    signal(SIGSEGV, caught);
    int number = sigsetjmp(place, 1);
    if (!number) *(volatile int *)8 = 0;
    printf("its own fault: %d\n", number);
    number = sigsetjmp(place, 1);
    if (!number) __asm__ volatile("hlt");
    printf("another instruction: %d\n", number);
    signal(SIGUSR1, caught);
    number = sigsetjmp(place, 1);
    if (!number) raise(SIGUSR1);
    printf("a signal: %d\n", number == SIGUSR1);
    if (!fork()) raise(SIGTERM);
    wait(&status);
    printf("a child's end: %d\n", WTERMSIG(status));
    if (!fork()) { raise(SIGSTOP); _exit(3); }
    int stopped;
    pid_t child = waitpid(-1, &stopped, WUNTRACED);
    kill(child, SIGCONT);
    waitpid(child, &status, 0);
    printf("stopped by %d, then ended with %d\n", WSTOPSIG(stopped), WEXITSTATUS(status));
    return 42;
}
