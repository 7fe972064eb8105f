/* A program that knows nothing of cbit: it walks every command of SEV_ISSUE_CMD as the kernel's header
 * describes them, and prints a transcript in which nothing is random.  sev_client [CHAIN] writes PDH, PEK, OCA
 * and CEK to CHAIN. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>
#include <linux/psp-sev.h>

static int fd;

static int issue(const char *name, uint32_t command, void *data) {
    struct sev_issue_cmd it = {.cmd = command, .data = (uintptr_t)data, .error = 99};
    int result = ioctl(fd, SEV_ISSUE_CMD, &it);
    printf("%s: %s, error %u", name, result ? strerrorname_np(errno) : "ok", it.error);
    return result;
}

static void status(void) {
    struct sev_user_data_status it = {0};
    issue("status", SEV_PLATFORM_STATUS, &it);
    printf(", API %u.%u, build %u, state %u, flags %#x, guests %u\n", it.api_major, it.api_minor, it.build,
           it.state, it.flags, it.guest_count);
}

static void plain(const char *name, uint32_t command, void *data) {
    issue(name, command, data);
    putchar('\n');
}

static void export(const char *path, uint32_t pdh_len, uint32_t chain_len) {
    unsigned char *pdh = calloc(1, 0x8000), *chain = calloc(1, 0x8000);
    struct sev_user_data_pdh_cert_export it = {(uintptr_t)pdh, pdh_len, (uintptr_t)chain, chain_len};
    int result = issue("export", SEV_PDH_CERT_EXPORT, &it);
    printf(", PDH %#x, chain %#x, version %u and %u\n", it.pdh_cert_len, it.cert_chain_len, pdh[0], chain[0]);
    if (path && !result) {
        FILE *file = fopen(path, "wb");
        fwrite(pdh, 1, it.pdh_cert_len, file);
        fwrite(chain, 1, it.cert_chain_len, file);
        fclose(file);
    }
    free(pdh);
    free(chain);
}

static void csr(uint32_t length) {
    unsigned char cert[0x4000] = {0};
    struct sev_user_data_pek_csr it = {(uintptr_t)cert, length};
    issue("csr", SEV_PEK_CSR, &it);
    printf(", length %#x, version %u, slots unused %d\n", it.length, cert[0],
           cert[0x414] == 0 && cert[0x415] == 0x10 && cert[0x61c] == 0 && cert[0x61d] == 0x10);
}

static void ids(void) {
    struct sev_user_data_get_id both = {0};
    unsigned char one[64] = {0};
    struct sev_user_data_get_id2 it = {0, 0};
    plain("id", SEV_GET_ID, &both);
    issue("id2 asked", SEV_GET_ID2, &it);
    printf(", length %u\n", it.length);
    it.address = (uintptr_t)one;
    issue("id2", SEV_GET_ID2, &it);
    printf(", length %u, same %d, second socket %u\n", it.length, !memcmp(one, both.socket1, 64), both.socket2[0]);
}

static void import(void) {
    unsigned char cert[0x824] = {1};
    struct sev_user_data_pek_cert_import it = {(uintptr_t)cert, sizeof cert, (uintptr_t)cert, sizeof cert};
    plain("import of nonsense", SEV_PEK_CERT_IMPORT, &it);
    it.pek_cert_len = 0x4001;
    plain("import of too much", SEV_PEK_CERT_IMPORT, &it);
}

int main(int words, char **word) {
    char sev[4] = {0};
    int parameter = open("/sys/module/kvm_amd/parameters/sev", O_RDONLY);
    if (parameter < 0 || read(parameter, sev, 3) < 1) return perror("the parameter"), 1;
    fd = open("/dev/sev", O_RDWR | O_CLOEXEC);
    if (fd < 0) return perror("/dev/sev"), 1;
    printf("parameter sev: %.1s\n", sev);
    status();
    ids();
    status();
    export(0, 0, 0);
    status();
    export(words > 1 ? word[1] : 0, 0x824, 0x186c);
    export(0, 0x824, 0x186b);
    export(0, 0x4001, 0x186c);
    csr(0);
    csr(0x823);
    csr(0x4000);
    plain("new PDH", SEV_PDH_GEN, 0);
    plain("new PEK", SEV_PEK_GEN, 0);
    import();
    plain("snp status", 9, sev);
    plain("snp commit", 10, 0);
    plain("snp config", 11, sev);
    plain("snp vlek", 12, sev);
    plain("out of range", 13, 0);
    plain("bad pointer", SEV_PLATFORM_STATUS, (void *)8);
    plain("reset", SEV_FACTORY_RESET, 0);
    status();
    return 42;
}
