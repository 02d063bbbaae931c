/* The NBD server's loop on a socket pair: replies as they must be, whatever comes. */
#include <errno.h>
#include <pthread.h>
#include <string.h>
#include <sys/socket.h>

#include "fdstash_nbd.h"
#include "images.h"
#include "protocol.h"

enum { SIZE = 1 << 20 };

struct served {
    struct small_file file;
    fdstash_image *image;
    fdstash_queue *queue;
    fdstash_nbd *nbd;
    pthread_t thread;
    int ours, its; /* the ends of the socket */
    int failures;  /* told */
};

static void *serve(void *argument)
{
    struct served *served = argument;
    fdstash_nbd_failure failure;
    int rc;
    /* Until the test asks for them, requests for a driver have none. */
    while ((rc = fdstash_nbd_run(served->nbd, &failure)) != 0) {
        CHECK(rc == 1 || rc == -FDSTASH_NEEDS);
        served->failures += rc == 1;
    }
    CHECK_EQUAL(rc, 0);
    shutdown(served->its, SHUT_WR);
    return NULL;
}

static void begin(struct served *served, uint32_t flags)
{
    int pair[2], why;
    memset(served, 0, sizeof(*served));
    make_file(&served->file, SIZE);
    served->image = make_image(&served->file, 1, SIZE, 0);
    fdstash_image_set_marked(served->image, 1);
    CHECK_EQUAL(fdstash_queue_new(served->image, 8, FDSTASH_ENGINE_AUTO, 0, &served->queue, &why),
                0);
    CHECK_EQUAL(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, pair), 0);
    served->ours = pair[0];
    served->its = pair[1];
    fdstash_nbd_plan plan = {.socket = served->its,
                             .flags = flags,
                             .depth = 8,
                             .context = 5,
                             .largest = 65536,
                             .memory = 2 * 65536};
    CHECK_EQUAL(fdstash_nbd_new(served->queue, &plan, &served->nbd), 0);
    CHECK_EQUAL(pthread_create(&served->thread, NULL, serve, served), 0);
}

static void end(struct served *served)
{
    close(served->ours);
    pthread_join(served->thread, NULL);
    CHECK_EQUAL(fdstash_queue_drain(served->queue), 0);
    fdstash_queue_free(served->queue);
    fdstash_nbd_free(served->nbd);
    close(served->its);
    drop_image(served->image);
    drop_file(&served->file);
}

static size_t request(unsigned char *to, uint16_t command, uint16_t flags, uint64_t offset,
                      uint32_t length, uint64_t cookie)
{
    unsigned char *at = nbd_put32(to, NBD_REQUEST_MAGIC);
    at = nbd_put16(nbd_put16(at, flags), command);
    nbd_put32(nbd_put64(nbd_put64(at, cookie), offset), length);
    return NBD_REQUEST_SIZE;
}

static void put(const struct served *served, const void *data, size_t length)
{
    CHECK_EQUAL(send(served->ours, data, length, MSG_NOSIGNAL), length);
}

static void get(const struct served *served, void *data, size_t length)
{
    CHECK_EQUAL(recv(served->ours, data, length, MSG_WAITALL), length);
}

static void ask(const struct served *served, uint16_t command, uint16_t flags, uint64_t offset,
                uint32_t length)
{
    unsigned char header[NBD_REQUEST_SIZE];
    put(served, header, request(header, command, flags, offset, length, 77));
}

static void check_simple(const struct served *served, uint32_t error)
{
    unsigned char reply[16];
    get(served, reply, sizeof(reply));
    CHECK_EQUAL(nbd_get32(reply), NBD_SIMPLE_REPLY_MAGIC);
    CHECK_EQUAL(nbd_get32(reply + 4), error);
    CHECK_EQUAL(nbd_get64(reply + 8), 77);
}

static void check_chunk(const struct served *served, uint16_t type, uint32_t length)
{
    unsigned char reply[20];
    get(served, reply, sizeof(reply));
    CHECK_EQUAL(nbd_get32(reply), NBD_STRUCTURED_REPLY_MAGIC);
    CHECK_EQUAL(nbd_get16(reply + 4), NBD_REPLY_FLAG_DONE);
    CHECK_EQUAL(nbd_get16(reply + 6), type);
    CHECK_EQUAL(nbd_get64(reply + 8), 77);
    CHECK_EQUAL(nbd_get32(reply + 16), length);
}

static void test_simple_replies_carry_data(void)
{
    struct served served;
    char data[600], found[600];
    memset(data, 'w', sizeof(data));
    begin(&served, FDSTASH_NBD_WRITABLE);
    ask(&served, NBD_CMD_WRITE, NBD_CMD_FLAG_FUA, 1000, sizeof(data));
    put(&served, data, sizeof(data));
    check_simple(&served, NBD_OK);
    ask(&served, NBD_CMD_READ, 0, 1000, sizeof(data));
    check_simple(&served, NBD_OK);
    get(&served, found, sizeof(found));
    CHECK_EQUAL(memcmp(found, data, sizeof(data)), 0);
    /* Without structured replies nobody may ask for one chunk. */
    ask(&served, NBD_CMD_READ, NBD_CMD_FLAG_DF, 1000, 512);
    check_simple(&served, NBD_EINVAL);
    end(&served);
}

static void test_structured_replies_have_one_chunk(void)
{
    struct served served;
    unsigned char found[8 + 512];
    begin(&served, FDSTASH_NBD_STRUCTURED | FDSTASH_NBD_ALLOCATION);
    ask(&served, NBD_CMD_READ, NBD_CMD_FLAG_DF, 4096, 512);
    check_chunk(&served, NBD_REPLY_OFFSET_DATA, sizeof(found));
    get(&served, found, sizeof(found));
    CHECK_EQUAL(nbd_get64(found), 4096);
    ask(&served, NBD_CMD_READ, 0, SIZE, 512);
    check_chunk(&served, NBD_REPLY_ERROR, 6);
    get(&served, found, 6);
    CHECK_EQUAL(nbd_get32(found), NBD_EINVAL);
    ask(&served, NBD_CMD_BLOCK_STATUS, NBD_CMD_FLAG_REQ_ONE, 0, SIZE);
    check_chunk(&served, NBD_REPLY_BLOCK_STATUS, 4 + 8);
    get(&served, found, 12);
    CHECK_EQUAL(nbd_get32(found), 5);
    CHECK_EQUAL(nbd_get32(found + 4), SIZE);
    CHECK_EQUAL(nbd_get32(found + 8), FDSTASH_STATUS_HOLE | FDSTASH_STATUS_ZERO);
    ask(&served, NBD_CMD_WRITE, 0, 0, 100);
    put(&served, found, 100);
    check_simple(&served, NBD_EPERM);
    end(&served);
}

static void test_what_changes_an_unmarked_image_is_for_the_driver(void)
{
    struct served served;
    const char data[512] = {1};
    char found[512];
    begin(&served, FDSTASH_NBD_WRITABLE);
    fdstash_image_set_marked(served.image, 0);
    ask(&served, NBD_CMD_WRITE, 0, SIZE, sizeof(data)); /* refused: no change */
    put(&served, data, sizeof(data));
    check_simple(&served, NBD_ENOSPC);
    ask(&served, NBD_CMD_WRITE, 0, 0, sizeof(data));
    put(&served, data, sizeof(data));
    fdstash_request request;
    int id = fdstash_queue_next(served.queue, -1, &request);
    CHECK(id >= 0);
    CHECK_EQUAL(request.operation, FDSTASH_OP_WRITE);
    CHECK_EQUAL(request.flags, FDSTASH_MARK);
    CHECK_EQUAL(request.length, sizeof(data));
    /* Others go on meanwhile. */
    ask(&served, NBD_CMD_READ, 0, 4096, 512);
    check_simple(&served, NBD_OK);
    get(&served, found, sizeof(found));
    fdstash_image_set_marked(served.image, 1);
    fdstash_queue_answer(served.queue, (uint32_t)id, -ENOSPC);
    check_simple(&served, NBD_ENOSPC);
    ask(&served, NBD_CMD_WRITE, 0, 0, sizeof(data));
    put(&served, data, sizeof(data));
    check_simple(&served, NBD_OK);
    fdstash_queue_stop(served.queue);
    end(&served);
    CHECK_EQUAL(served.failures, 1);
}

static void test_requests_of_no_length_are_done(void)
{
    struct served served;
    const uint16_t commands[] = {NBD_CMD_WRITE, NBD_CMD_READ, NBD_CMD_TRIM, NBD_CMD_WRITE_ZEROES,
                                 NBD_CMD_CACHE};
    begin(&served, FDSTASH_NBD_WRITABLE);
    for (size_t i = 0; i < sizeof(commands) / sizeof(*commands); i++) {
        ask(&served, commands[i], 0, SIZE, 0);
        check_simple(&served, NBD_OK);
    }
    end(&served);
}

static void test_more_requests_than_slots_and_memory_wait(void)
{
    struct served served;
    unsigned char headers[64 * NBD_REQUEST_SIZE];
    static char data[65536];
    begin(&served, FDSTASH_NBD_WRITABLE);
    for (int i = 0; i < 64; i++)
        request(headers + i * NBD_REQUEST_SIZE, NBD_CMD_READ, 0, 0, sizeof(data), 77);
    put(&served, headers, sizeof(headers));
    for (int i = 0; i < 64; i++) {
        check_simple(&served, NBD_OK);
        get(&served, data, sizeof(data));
    }
    end(&served);
}

static void test_a_refused_payload_is_skipped(void)
{
    struct served served;
    static char data[1 << 20];
    begin(&served, FDSTASH_NBD_WRITABLE);
    ask(&served, NBD_CMD_WRITE, 0, 0, sizeof(data));
    for (size_t at = 0; at < sizeof(data); at += 65536)
        put(&served, data + at, 65536);
    check_simple(&served, NBD_EINVAL);
    ask(&served, NBD_CMD_FLUSH, 0, 0, 0);
    check_simple(&served, NBD_OK);
    end(&served);
}

static void test_what_breaks_the_protocol_ends_it_and_what_was_asked_before_is_answered(void)
{
    struct served served;
    char left;
    begin(&served, FDSTASH_NBD_WRITABLE);
    ask(&served, NBD_CMD_FLUSH, 0, 0, 0);
    put(&served, "this is no request of the protocol", 34);
    check_simple(&served, NBD_OK);
    CHECK_EQUAL(recv(served.ours, &left, 1, 0), 0);
    end(&served);
}

static void test_a_client_may_go_at_every_byte(void)
{
    unsigned char session[4 * NBD_REQUEST_SIZE + 40];
    size_t length = request(session, NBD_CMD_WRITE, 0, 0, 40, 1);
    memset(session + length, 'x', 40);
    length += 40;
    length += request(session + length, NBD_CMD_READ, 0, 0, 4096, 2);
    length += request(session + length, NBD_CMD_TRIM, NBD_CMD_FLAG_FUA, 0, 8192, 3);
    length += request(session + length, NBD_CMD_DISC, 0, 0, 0, 4);
    for (size_t cut = 0; cut <= length; cut++) {
        struct served served;
        begin(&served, FDSTASH_NBD_WRITABLE);
        if (cut > 0)
            put(&served, session, cut);
        end(&served);
    }
}

static void test_a_stop_answers_what_was_begun_and_refuses_the_rest(void)
{
    struct served served;
    char left;
    begin(&served, FDSTASH_NBD_WRITABLE);
    ask(&served, NBD_CMD_FLUSH, 0, 0, 0);
    check_simple(&served, NBD_OK);
    fdstash_nbd_stop(served.nbd, 0);
    CHECK_EQUAL(recv(served.ours, &left, 1, 0), 0);
    end(&served);

    /* The payload of this one does not come: it is dropped, or refused before. */
    begin(&served, FDSTASH_NBD_WRITABLE);
    ask(&served, NBD_CMD_WRITE, 0, 0, 65536);
    fdstash_nbd_stop(served.nbd, 0);
    unsigned char reply[17];
    ssize_t got = recv(served.ours, reply, sizeof(reply), MSG_WAITALL);
    CHECK(got == 0 || got == 16);
    CHECK(got == 0 || nbd_get32(reply + 4) == NBD_ESHUTDOWN);
    end(&served);
}

static void test_a_held_write_does_not_hold_up_reads(void)
{
    struct served served;
    char data[512] = {1};
    begin(&served, FDSTASH_NBD_WRITABLE);
    CHECK_EQUAL(fdstash_image_hold(served.image, FDSTASH_WRITES | FDSTASH_UNALIGNED_WRITES, 1, -1),
                0);
    unsigned char header[NBD_REQUEST_SIZE];
    put(&served, header, request(header, NBD_CMD_WRITE, 0, 0, sizeof(data), 78));
    put(&served, data, sizeof(data));
    ask(&served, NBD_CMD_READ, 0, 0, sizeof(data));
    check_simple(&served, NBD_OK);
    get(&served, data, sizeof(data));
    CHECK_EQUAL(data[0], 0);
    fdstash_image_release(served.image);
    unsigned char reply[16];
    get(&served, reply, sizeof(reply));
    CHECK_EQUAL(nbd_get64(reply + 8), 78);
    CHECK_EQUAL(nbd_get32(reply + 4), NBD_OK);
    end(&served);
}

static void test_a_client_that_takes_nothing_can_be_abandoned(void)
{
    struct served served;
    unsigned char header[NBD_REQUEST_SIZE];
    begin(&served, FDSTASH_NBD_WRITABLE);
    request(header, NBD_CMD_READ, 0, 0, 65536, 77);
    while (send(served.ours, header, sizeof(header), MSG_DONTWAIT) == sizeof(header))
        ;
    fdstash_nbd_stop(served.nbd, 0);
    fdstash_nbd_stop(served.nbd, 1);
    end(&served);
}

static void test_plans_that_make_no_sense_are_refused(void)
{
    struct small_file file;
    fdstash_queue *queue;
    fdstash_nbd *nbd;
    int why;
    make_file(&file, SIZE);
    fdstash_image *image = make_image(&file, 1, SIZE, 0);
    CHECK_EQUAL(fdstash_queue_new(image, 8, FDSTASH_ENGINE_AUTO, 0, &queue, &why), 0);
    const fdstash_nbd_plan good = {.depth = 8, .largest = 4096, .memory = 4096};
    fdstash_nbd_plan plans[4] = {good, good, good, good};
    plans[0].depth = 0;
    plans[1].largest = 0;
    plans[2].memory = 4095;
    plans[3].early_length = FDSTASH_NBD_EARLY + 1;
    for (int i = 0; i < 4; i++)
        CHECK_EQUAL(fdstash_nbd_new(queue, &plans[i], &nbd), -EINVAL);
    CHECK_EQUAL(fdstash_nbd_new(queue, &good, &nbd), 0);
    fdstash_nbd_free(nbd);
    fdstash_queue_free(queue);
    drop_image(image);
    drop_file(&file);
}

int main(void)
{
    RUN(test_simple_replies_carry_data);
    RUN(test_structured_replies_have_one_chunk);
    RUN(test_what_changes_an_unmarked_image_is_for_the_driver);
    RUN(test_requests_of_no_length_are_done);
    RUN(test_more_requests_than_slots_and_memory_wait);
    RUN(test_a_refused_payload_is_skipped);
    RUN(test_what_breaks_the_protocol_ends_it_and_what_was_asked_before_is_answered);
    RUN(test_a_client_may_go_at_every_byte);
    RUN(test_a_stop_answers_what_was_begun_and_refuses_the_rest);
    RUN(test_a_held_write_does_not_hold_up_reads);
    RUN(test_a_client_that_takes_nothing_can_be_abandoned);
    RUN(test_plans_that_make_no_sense_are_refused);
    return 0;
}
