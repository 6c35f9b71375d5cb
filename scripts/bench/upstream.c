/* Plays Venice for scripts/bench.sh with one thread, epoll and prepared responses.
 *
 *   upstream LISTS
 *
 * LISTS is a file of lines "path?query TAB json", Venice's lists, matched by the end of the target.
 * It prints its port on 127.0.0.1.
 *
 * The prompt of a chat completion chooses the response, so that every gateway passes the choice on:
 *   [chunks=N]    a stream of N chunks of content, then one of usage, then [DONE]
 *   [pace=N]      N chunks per second; without it the whole stream is sent at once
 *   [status=N]    an error with that status
 *   nothing       one JSON of about 700 bytes
 * Every response, chunk and embedding contains MARKER, which no gateway would produce.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define MARKER "0.123046875"
#define MODEL "llama-3.3-70b"
#define USAGE                                                                               \
    "\"usage\":{\"prompt_tokens\":25,\"completion_tokens\":100,\"total_tokens\":125,"       \
    "\"prompt_tokens_details\":{\"cached_tokens\":0}},\"cost\":{\"usd\":0.0002975,\"diem\":0}"
#define SEARCHED 16384 /* bytes of a body that are searched for the choices above */
#define MAX_LISTS 256
#define MAX_EVENTS 256

struct buffer {
    char *data;
    size_t length, capacity;
};

struct connection {
    int fd;
    struct buffer in, out;
    size_t head_length, body_length; /* of the request being read; 0 until its head is complete */
    size_t sent;                     /* of out */
    int chunks_left;                 /* of a paced stream */
    long gap_ns, next_ns;
    bool wants_out, closed;
    struct connection *next_paced;
};

static struct { char *target; struct buffer answer; } lists[MAX_LISTS];
static int list_count, poll_fd, timer_fd;
static struct connection *paced;
static struct buffer chat, embeddings, stream_head, chunks[2], stream_end, whole_stream;
static int whole_stream_chunks;

static void die(const char *what) {
    perror(what);
    exit(1);
}

static long now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * 1000000000L + t.tv_nsec;
}

static void reserve(struct buffer *b, size_t more) {
    if (b->length + more <= b->capacity) return;
    size_t wanted = b->capacity * 2 > b->length + more ? b->capacity * 2 : b->length + more;
    b->data = realloc(b->data, wanted);
    if (!b->data) die("realloc");
    b->capacity = wanted;
}

static void append(struct buffer *b, const char *data, size_t length) {
    reserve(b, length);
    memcpy(b->data + b->length, data, length);
    b->length += length;
}

static void append_text(struct buffer *b, const char *text) { append(b, text, strlen(text)); }

/* Return a plain response with its head. */
static struct buffer answer_of(const char *status, const char *json, size_t length) {
    char head[256];
    struct buffer made = {0};
    snprintf(head, sizeof head,
             "HTTP/1.1 %s\r\nContent-Type: application/json\r\nCF-RAY: bench\r\n"
             "Content-Length: %zu\r\n\r\n",
             status, length);
    append_text(&made, head);
    append(&made, json, length);
    return made;
}

/* Append data of a stream as one HTTP chunk. */
static void append_chunk(struct buffer *b, const char *data) {
    char size[32];
    snprintf(size, sizeof size, "%zx\r\n", strlen(data));
    append_text(b, size);
    append_text(b, data);
    append_text(b, "\r\n");
}

#define EVENT "data: {\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion.chunk\"," \
              "\"created\":1790000000,\"model\":\"" MODEL "\","

static void make_answers(void) {
    struct buffer json = {0};
    append_text(&json, "{\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion\","
                       "\"created\":1790000000,\"model\":\"" MODEL "\",\"choices\":[{\"index\":0,"
                       "\"message\":{\"role\":\"assistant\",\"content\":\"" MARKER);
    for (int i = 0; i < 38; i++) append_text(&json, " and so on");
    append_text(&json, "\"},\"logprobs\":null,\"finish_reason\":\"stop\"}]," USAGE "}");
    chat = answer_of("200 OK", json.data, json.length);

    json.length = 0;
    append_text(&json, "{\"object\":\"list\",\"model\":\"text-embedding-bge-m3\",\"data\":["
                       "{\"object\":\"embedding\",\"index\":0,\"embedding\":[" MARKER);
    for (int i = 1; i < 1024; i++) append_text(&json, i % 2 ? ",-0.015625" : ",0.03125");
    append_text(&json, "]}],\"usage\":{\"prompt_tokens\":8,\"total_tokens\":8}}");
    embeddings = answer_of("200 OK", json.data, json.length);
    free(json.data);

    append_text(&stream_head, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
                              "CF-RAY: bench\r\nTransfer-Encoding: chunked\r\n\r\n");
#define CONTENT(word)                                                                       \
    EVENT "\"choices\":[{\"index\":0,\"delta\":{\"content\":\" " MARKER word "\"},"            \
          "\"logprobs\":null,\"finish_reason\":null}]}\n\n"
    /* Alternate two texts, because some gateways end a stream that repeats one. */
    append_chunk(&chunks[0], CONTENT(" and"));
    append_chunk(&chunks[1], CONTENT(" on"));
    append_chunk(&stream_end, EVENT "\"choices\":[{\"index\":0,\"delta\":{},\"logprobs\":null,"
                                    "\"finish_reason\":\"stop\"}]}\n\n");
    append_chunk(&stream_end, EVENT "\"choices\":[]," USAGE "}\n\n");
    append_chunk(&stream_end, "data: [DONE]\n\n");
    append_text(&stream_end, "0\r\n\r\n");
}

static void read_lists(const char *path) {
    FILE *file = fopen(path, "r");
    if (!file) die(path);
    char *line = NULL;
    size_t capacity = 0;
    ssize_t length;
    while ((length = getline(&line, &capacity, file)) > 0 && list_count < MAX_LISTS) {
        char *tab = strchr(line, '\t');
        if (!tab) continue;
        if (line[length - 1] == '\n') line[--length] = 0;
        *tab = 0;
        lists[list_count].target = strdup(line);
        lists[list_count++].answer = answer_of("200 OK", tab + 1, line + length - tab - 1);
    }
    free(line);
    fclose(file);
}

static void watch(struct connection *c, int operation) {
    struct epoll_event event = {.events = EPOLLIN | (c->wants_out ? EPOLLOUT : 0),
                                .data.ptr = c};
    if (epoll_ctl(poll_fd, operation, c->fd, &event) < 0) die("epoll_ctl");
}

/* Send what the socket accepts, and the rest when it accepts more. */
static void flush(struct connection *c) {
    while (!c->closed && c->sent < c->out.length) {
        ssize_t n = send(c->fd, c->out.data + c->sent, c->out.length - c->sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EAGAIN) break;
        if (n < 0) c->closed = true;
        else c->sent += n;
    }
    if (c->sent == c->out.length) c->sent = c->out.length = 0;
    bool wants = c->out.length > 0 && !c->closed;
    if (wants != c->wants_out) {
        c->wants_out = wants;
        watch(c, EPOLL_CTL_MOD);
    }
}

/* Return the number after "[name=" in a body, or 0. */
static int wish(const char *body, size_t length, const char *name) {
    const char *found = memmem(body, length < SEARCHED ? length : SEARCHED, name, strlen(name));
    return found ? atoi(found + strlen(name)) : 0;
}

static bool ends_with(const char *text, size_t length, const char *end) {
    size_t n = strlen(end);
    return length >= n && !memcmp(text + length - n, end, n);
}

static void append_one(struct buffer *b, int number) {
    append(b, chunks[number % 2].data, chunks[number % 2].length);
}

static void start_stream(struct connection *c, int count, int pace) {
    append(&c->out, stream_head.data, stream_head.length);
    if (pace) {
        c->chunks_left = count;
        c->gap_ns = 1000000000L / pace;
        c->next_ns = now_ns() + c->gap_ns;
        c->next_paced = paced;
        paced = c;
        return;
    }
    if (whole_stream_chunks != count) {
        whole_stream.length = 0;
        for (int i = 0; i < count; i++) append_one(&whole_stream, i);
        append(&whole_stream, stream_end.data, stream_end.length);
        whole_stream_chunks = count;
    }
    append(&c->out, whole_stream.data, whole_stream.length);
}

static void refuse(struct connection *c, int status) {
    char line[32];
    const char *json = "{\"error\":\"The double was asked to fail.\"}";
    snprintf(line, sizeof line, "%d Failed", status);
    struct buffer made = answer_of(line, json, strlen(json));
    append(&c->out, made.data, made.length);
    free(made.data);
}

static void answer_post(struct connection *c, const char *target, size_t length) {
    const char *body = c->in.data + c->head_length;
    if (ends_with(target, length, "/embeddings")) {
        append(&c->out, embeddings.data, embeddings.length);
    } else if (ends_with(target, length, "/chat/completions")) {
        int status = wish(body, c->body_length, "[status=");
        int count = wish(body, c->body_length, "[chunks=");
        if (status) refuse(c, status);
        else if (count) start_stream(c, count, wish(body, c->body_length, "[pace="));
        else append(&c->out, chat.data, chat.length);
    } else {
        refuse(c, 404);
    }
}

static void answer(struct connection *c) {
    char *target = memchr(c->in.data, ' ', c->head_length);
    char *end = target ? memchr(target + 1, ' ', c->in.data + c->head_length - target - 1) : NULL;
    if (!end) {
        c->closed = true;
        return;
    }
    size_t length = end - ++target;
    if (c->in.data[0] == 'P') {
        answer_post(c, target, length);
        return;
    }
    for (int i = 0; i < list_count; i++)
        if (ends_with(target, length, lists[i].target)) {
            append(&c->out, lists[i].answer.data, lists[i].answer.length);
            return;
        }
    refuse(c, 404);
}

/* Return whether the head is complete, and set its length and the body's. */
static bool read_head(struct connection *c) {
    char *end = memmem(c->in.data, c->in.length, "\r\n\r\n", 4);
    if (!end) return false;
    c->head_length = end + 4 - c->in.data;
    c->body_length = 0;
    *end = 0; /* terminates the two searches; restored below */
    char *found = strcasestr(c->in.data, "\r\ncontent-length:");
    if (found) c->body_length = strtoul(found + 17, NULL, 10);
    else if (strcasestr(c->in.data, "\r\ntransfer-encoding:")) c->closed = true; /* not needed */
    *end = '\r';
    size_t whole = c->head_length + c->body_length;
    if (whole > c->in.length) reserve(&c->in, whole - c->in.length);
    return true;
}

static void receive(struct connection *c) {
    for (;;) {
        reserve(&c->in, 4096);
        size_t room = c->in.capacity - c->in.length;
        ssize_t n = recv(c->fd, c->in.data + c->in.length, room, 0);
        if (n == 0 || (n < 0 && errno != EAGAIN)) c->closed = true;
        if (n <= 0) break;
        c->in.length += n;
        if ((size_t)n < room) break;
    }
    while (!c->closed && c->in.length && (c->head_length || read_head(c))) {
        size_t whole = c->head_length + c->body_length;
        if (c->in.length < whole) break;
        answer(c);
        memmove(c->in.data, c->in.data + whole, c->in.length - whole);
        c->in.length -= whole;
        c->head_length = 0;
    }
    flush(c);
}

/* Send the chunks that are due and set the timer for the next one. */
static void pace_streams(void) {
    long now = now_ns(), next = 0;
    for (struct connection **at = &paced; *at;) {
        struct connection *c = *at;
        for (; c->chunks_left && c->next_ns <= now; c->next_ns += c->gap_ns)
            append_one(&c->out, c->chunks_left--);
        if (!c->chunks_left) append(&c->out, stream_end.data, stream_end.length);
        flush(c);
        if (!c->chunks_left || c->closed) {
            *at = c->next_paced;
            continue;
        }
        if (!next || c->next_ns < next) next = c->next_ns;
        at = &c->next_paced;
    }
    struct itimerspec spec = {.it_value = {next / 1000000000L, next % 1000000000L}};
    timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &spec, NULL);
}

static void drop(struct connection *c) {
    for (struct connection **at = &paced; *at; at = &(*at)->next_paced)
        if (*at == c) {
            *at = c->next_paced;
            break;
        }
    close(c->fd);
    free(c->in.data);
    free(c->out.data);
    free(c);
}

static void accept_all(int listener) {
    int fd, one = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        struct connection *c = calloc(1, sizeof *c);
        c->fd = fd;
        watch(c, EPOLL_CTL_ADD);
    }
}

static int listen_somewhere(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
    socklen_t length = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (bind(listener, (void *)&address, length) < 0 || listen(listener, 1024) < 0) die("listen");
    getsockname(listener, (void *)&address, &length);
    printf("%d\n", ntohs(address.sin_port));
    fflush(stdout);
    return listener;
}

int main(int argc, char **argv) {
    if (argc != 2) return fprintf(stderr, "upstream LISTS\n"), 2;
    signal(SIGPIPE, SIG_IGN);
    make_answers();
    read_lists(argv[1]);
    poll_fd = epoll_create1(0);
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    int listener = listen_somewhere();
    struct epoll_event events[MAX_EVENTS] = {{.events = EPOLLIN, .data.ptr = &listener}};
    epoll_ctl(poll_fd, EPOLL_CTL_ADD, listener, events);
    events[0].data.ptr = &timer_fd;
    epoll_ctl(poll_fd, EPOLL_CTL_ADD, timer_fd, events);
    for (;;) {
        struct connection *before = paced;
        bool is_due = false;
        int count = epoll_wait(poll_fd, events, MAX_EVENTS, -1);
        for (int i = 0; i < count; i++) {
            struct connection *c = events[i].data.ptr;
            if (events[i].data.ptr == &listener) accept_all(listener);
            else if (events[i].data.ptr == &timer_fd) is_due = true;
            else {
                if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) receive(c);
                else if (events[i].events & EPOLLOUT) flush(c);
                if (c->closed) drop(c);
            }
        }
        if (is_due || paced != before) {
            char expirations[8];
            while (read(timer_fd, expirations, sizeof expirations) > 0) {}
            pace_streams();
        }
    }
}
