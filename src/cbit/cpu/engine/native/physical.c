/* The engine's physical memory, read and written without asking where things are.
 *
 * Why: page walks, VMRUN and #VMEXIT reach memory by these functions, and QEMU looks every word of theirs up in a tree
 * of memory regions.  A nested walk is two dozen words, an exit two hundred; the engine has three regions, in known
 * places.  What lies outside of them, and who is no engine of ours, is left to the library.
 */
#include "stubs.h"

#include <string.h>

static inline char *memory_at(void *cs, uint64_t address, uint64_t size, unsigned first)
{
    struct engine *e = current;
    if (e && e->cs == cs)
        for (struct area *area = e->area + first; area < e->area + AREAS; area++)
            if (address - area->start <= area->length - size)
                return area->memory + (address - area->start);
    return NULL;
}

static inline int load(void *cs, uint64_t address, void *value, uint64_t size)
{
    const char *memory = memory_at(cs, address, size, POOL_AREA);
    if (memory)
        memcpy(value, memory, size);
    return memory != NULL;
}

/* In the areas from `first` on. */
static inline int store(void *cs, uint64_t address, const void *value, uint64_t size, unsigned first)
{
    char *memory = memory_at(cs, address, size, first);
    if (memory)
        memcpy(memory, value, size);
    return memory != NULL;
}

/* Why: as all of these, at the top of the file. */
uint8_t stub_x86_ldub_phys(void *cs, uint64_t address)
{
    uint8_t value;
    return load(cs, address, &value, sizeof value) ? value : call.x86_ldub_phys(cs, address);
}

/* Why: as above. */
uint32_t stub_x86_lduw_phys(void *cs, uint64_t address)
{
    uint16_t value;
    return load(cs, address, &value, sizeof value) ? value : call.x86_lduw_phys(cs, address);
}

/* Why: as above. */
uint32_t stub_x86_ldl_phys(void *cs, uint64_t address)
{
    uint32_t value;
    return load(cs, address, &value, sizeof value) ? value : call.x86_ldl_phys(cs, address);
}

/* Why: as above. */
uint64_t stub_x86_ldq_phys(void *cs, uint64_t address)
{
    uint64_t value;
    return load(cs, address, &value, sizeof value) ? value : call.x86_ldq_phys(cs, address);
}

/* Why: as above.  It sets accessed and dirty bits; the library drops no code either. */
void stub_x86_stl_phys_notdirty(void *cs, uint64_t address, uint32_t value)
{
    if (!store(cs, address, &value, sizeof value, POOL_AREA))
        call.x86_stl_phys_notdirty(cs, address, value);
}

/* Why: as above.  Elsewhere it may change code, and the library drops what it made of it. */
void stub_x86_stw_phys(void *cs, uint64_t address, uint32_t value)
{
    uint16_t narrow = (uint16_t)value;
    if (!store(cs, address, &narrow, sizeof narrow, HOST_AREA))
        call.x86_stw_phys(cs, address, value);
}

/* Why: as above. */
void stub_x86_stl_phys(void *cs, uint64_t address, uint32_t value)
{
    if (!store(cs, address, &value, sizeof value, HOST_AREA))
        call.x86_stl_phys(cs, address, value);
}

/* Why: as above. */
void stub_x86_stq_phys(void *cs, uint64_t address, uint64_t value)
{
    if (!store(cs, address, &value, sizeof value, HOST_AREA))
        call.x86_stq_phys(cs, address, value);
}
