/*
 * kick ROUNDS SAMPLES BDF...: what a kick costs the processor that makes it, an
 * `out` to Queue Notify in BAR0 of legacy virtio functions. The functions take
 * turns, SAMPLES each and a tenth before that does not count, each first as often
 * as the others. It prints, in nanoseconds,
 *
 *   INDEX round COUNT P50 P90 P99 P99.9 P99.99 MAX
 *   INDEX cdf NS NS ...        of all rounds, at the percentages below
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/io.h>
#include <time.h>
#include <x86intrin.h>

enum { FUNCTIONS_MAX = 8, BAR_IO = 1, QUEUE_NOTIFY = 16, BAR0_SIZE = 32, QUEUE = 0 };

/* Kicks of a guest are not back to back: whoever takes one has gone to sleep again. */
static const uint64_t pause_ns = 200000;

static double ns_per_tick;

static uint64_t clock_ns(void)
{
    struct timespec now;

    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000ull + now.tv_nsec;
}

static void calibrate(void)
{
    uint64_t ticks = __rdtsc(), ns = clock_ns();

    while (clock_ns() - ns < 200000000) continue;
    ns_per_tick = (double)(clock_ns() - ns) / (__rdtsc() - ticks);
}

static unsigned ports_of(const char *bdf)
{
    unsigned long long first, last, flags;
    char path[128];
    FILE *file;

    snprintf(path, sizeof(path), "/sys/bus/pci/devices/%s/resource", bdf);
    file = fopen(path, "r");
    if (!file || fscanf(file, "%llx %llx %llx", &first, &last, &flags) != 3 ||
        !(flags >> 8 & BAR_IO)) {
        fprintf(stderr, "kick: %s has no I/O BAR0\n", bdf);
        exit(1);
    }
    fclose(file);
    return first;
}

static uint64_t kick(unsigned ports)
{
    uint64_t before = __rdtsc(), after;

    outw(QUEUE, ports + QUEUE_NOTIFY);
    after = __rdtsc();
    while ((__rdtsc() - after) * ns_per_tick < pause_ns) continue;
    return (after - before) * ns_per_tick;
}

static int ascending(const void *a, const void *b)
{
    uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

    return (x > y) - (x < y);
}

/* The smallest sample that so many hundredths of a percent do not exceed. */
static uint64_t percentile(const uint64_t *sorted, size_t count, size_t hundredths)
{
    size_t rank = (count * hundredths + 9999) / 10000;

    return sorted[rank ? rank - 1 : 0];
}

static void print_round(int index, uint64_t *samples, size_t count)
{
    static const size_t hundredths[] = { 5000, 9000, 9900, 9990, 9999, 10000 };

    qsort(samples, count, sizeof(*samples), ascending);
    printf("%d round %zu", index, count);
    for (size_t i = 0; i < sizeof(hundredths) / sizeof(*hundredths); i++) {
        printf(" %llu", (unsigned long long)percentile(samples, count, hundredths[i]));
    }
    printf("\n");
}

/* Each half percent up to 99, then 99.25, 99.5, 99.75, 99.9. */
static void print_distribution(int index, uint64_t *samples, size_t count)
{
    static const size_t tail[] = { 9925, 9950, 9975, 9990 };

    qsort(samples, count, sizeof(*samples), ascending);
    printf("%d cdf", index);
    for (size_t at = 50; at <= 9900; at += 50) {
        printf(" %llu", (unsigned long long)percentile(samples, count, at));
    }
    for (size_t i = 0; i < sizeof(tail) / sizeof(*tail); i++) {
        printf(" %llu", (unsigned long long)percentile(samples, count, tail[i]));
    }
    printf("\n");
}

int main(int argc, char **argv)
{
    int rounds = argc > 3 ? atoi(argv[1]) : 0, functions = argc - 3;
    size_t count = argc > 3 ? atoi(argv[2]) : 0;
    uint64_t *samples[FUNCTIONS_MAX];
    unsigned ports[FUNCTIONS_MAX];

    if (rounds < 1 || count < 1 || functions > FUNCTIONS_MAX) {
        fprintf(stderr, "usage: kick ROUNDS SAMPLES BDF...\n");
        return 2;
    }
    for (int i = 0; i < functions; i++) {
        ports[i] = ports_of(argv[3 + i]);
        samples[i] = calloc(rounds * count, sizeof(*samples[i]));
        if (!samples[i] || ioperm(ports[i], BAR0_SIZE, 1)) {
            perror(argv[3 + i]);
            return 1;
        }
    }
    calibrate();
    for (int round = 0; round < rounds; round++) {
        for (int turn = 0; turn < functions; turn++) {
            int i = (round + turn) % functions;
            uint64_t *block = samples[i] + round * count;

            for (size_t n = 0; n < count / 10; n++) kick(ports[i]);
            for (size_t n = 0; n < count; n++) block[n] = kick(ports[i]);
            print_round(i, block, count);
        }
    }
    for (int i = 0; i < functions; i++) print_distribution(i, samples[i], rounds * count);
    return 0;
}
