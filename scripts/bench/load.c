/* The load generator of scripts/bench.sh: HTTP/1.1 with one thread, epoll and persistent connections.
 *
 *   load {--port N [--header "Name: value"]...}... --path P --body FILE --marker TEXT [--markers N]
 *        [--connections N] [--warmup-s N] [--seconds N] [--rate N] [--burst N]
 *
 * Each --port begins a target, with the headers that follow it. The connections take the targets in
 * turns.
 *
 * Without --rate the loop is closed: each connection sends its next request after its response.
 * With --rate the loop is open: requests are due at fixed times regardless of the responses, wait for
 * a free connection if necessary, and their latency starts when they were due. With --burst so many
 * are due at the same time, and the next ones after the time that the rate gives to all of them.
 *
 * Responses between the warm-up and the end are measured. Those still running at the end are waited
 * for and checked, and their latencies are used if no response came in time. A response must be a
 * 200 with the marker at least --markers times; the first other one ends the run with status 1.
 * The program prints one JSON object.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <getopt.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define SECOND_NS 1000000000L
#define DRAIN_NS (240 * SECOND_NS) /* how long responses may take after the end */
#define MAX_EVENTS 256
#define READ_BYTES 65536
#define SHOWN_BYTES 200 /* of a wrong response */
#define MAX_TARGETS 256

struct buffer {
    char *data;
    size_t length, capacity;
};

struct target {
    int port;
    struct buffer headers, request;
};

enum state { HEAD, BODY, CHUNK_SIZE, CHUNK_DATA, CHUNK_END, TRAILER };

struct connection {
    int fd;
    bool busy, wants_out, is_first_byte_seen, closes;
    enum state state;
    size_t sent, left; /* of the request; of the body or chunk being read */
    long markers, due_ns, first_byte_ns;
    struct buffer in, body;
    struct target *target;
    struct connection *next_free;
};

struct samples {
    long *ns;
    size_t count, capacity;
};

static struct {
    int connections, rate, burst;
    long markers;
    double warmup_s, seconds;
    const char *path, *body, *marker;
} options = {.connections = 1, .markers = 1, .seconds = 1, .burst = 1};

static struct target targets[MAX_TARGETS];
static int target_count;
static struct samples latencies, first_bytes;
static struct connection *free_connections;
static int poll_fd, timer_fd, running;
static long start_ns, from_ns, end_ns, arrivals, completed, window_requests;
static long all_markers, window_markers;

static void fail(const char *format, ...) {
    char text[512];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    for (char *c = text; *c; c++)
        if (*c == '"' || *c == '\\' || (unsigned char)*c < ' ') *c = '\'';
    printf("{\"error\": \"%s\"}\n", text);
    exit(1);
}

static long now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return t.tv_sec * SECOND_NS + t.tv_nsec;
}

static void reserve(struct buffer *b, size_t more) {
    if (b->length + more <= b->capacity) return;
    b->capacity = (b->length + more) * 2;
    b->data = realloc(b->data, b->capacity);
    if (!b->data) fail("no memory");
}

static void append(struct buffer *b, const char *data, size_t length) {
    reserve(b, length);
    memcpy(b->data + b->length, data, length);
    b->length += length;
}

static void record(struct samples *s, long ns) {
    if (s->count == s->capacity) {
        s->capacity = s->capacity ? s->capacity * 2 : 65536;
        s->ns = realloc(s->ns, s->capacity * sizeof *s->ns);
        if (!s->ns) fail("no memory");
    }
    s->ns[s->count++] = ns;
}

static void add_target(int port) {
    if (target_count == MAX_TARGETS) fail("more than %d targets", MAX_TARGETS);
    targets[target_count++].port = port;
}

static void add_header(const char *line) {
    if (!target_count) fail("a --header before any --port");
    struct buffer *headers = &targets[target_count - 1].headers;
    append(headers, line, strlen(line));
    append(headers, "\r\n", 2);
}

static void read_options(int argc, char **argv) {
    static const struct option known[] = {
        {"port", 1, 0, 'p'},    {"path", 1, 0, 'a'},     {"body", 1, 0, 'b'},
        {"marker", 1, 0, 'm'},  {"markers", 1, 0, 'n'},  {"header", 1, 0, 'h'},
        {"rate", 1, 0, 'r'},    {"seconds", 1, 0, 's'},  {"connections", 1, 0, 'c'},
        {"warmup-s", 1, 0, 'w'}, {"burst", 1, 0, 'u'},   {0}};
    int option;
    while ((option = getopt_long(argc, argv, "", known, NULL)) != -1) switch (option) {
        case 'p': add_target(atoi(optarg)); break;
        case 'a': options.path = optarg; break;
        case 'b': options.body = optarg; break;
        case 'm': options.marker = optarg; break;
        case 'n': options.markers = atol(optarg); break;
        case 'r': options.rate = atoi(optarg); break;
        case 's': options.seconds = atof(optarg); break;
        case 'c': options.connections = atoi(optarg); break;
        case 'w': options.warmup_s = atof(optarg); break;
        case 'u': options.burst = atoi(optarg); break;
        case 'h': add_header(optarg); break;
        default: exit(2);
        }
    if (!target_count || !options.path || !options.body || !options.marker || options.burst < 1)
        fail("--port, --path, --body and --marker are needed");
}

static struct buffer read_body(void) {
    struct buffer body = {0};
    FILE *file = fopen(options.body, "r");
    if (!file) fail("%s: %s", options.body, strerror(errno));
    fseek(file, 0, SEEK_END);
    size_t length = ftell(file);
    rewind(file);
    reserve(&body, length);
    body.length = fread(body.data, 1, length, file);
    if (body.length != length) fail("%s cannot be read", options.body);
    fclose(file);
    return body;
}

static void make_request(struct target *t, const struct buffer *body) {
    char head[512];
    snprintf(head, sizeof head,
             "POST %s HTTP/1.1\r\nHost: 127.0.0.1:%d\r\nContent-Type: application/json\r\n"
             "Content-Length: %zu\r\n",
             options.path, t->port, body->length);
    append(&t->request, head, strlen(head));
    append(&t->request, t->headers.data, t->headers.length);
    append(&t->request, "\r\n", 2);
    append(&t->request, body->data, body->length);
}

static void watch(struct connection *c, int operation) {
    struct epoll_event event = {.events = EPOLLIN | (c->wants_out ? EPOLLOUT : 0),
                                .data.ptr = c};
    if (epoll_ctl(poll_fd, operation, c->fd, &event) < 0) fail("epoll_ctl: %s", strerror(errno));
}

static void open_connection(struct connection *c) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(c->target->port),
                                  .sin_addr = {htonl(INADDR_LOOPBACK)}};
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM, 0);
    if (connect(c->fd, (void *)&address, sizeof address) < 0) fail("connect: %s", strerror(errno));
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    c->wants_out = c->closes = false;
    watch(c, EPOLL_CTL_ADD);
}

static void send_rest(struct connection *c) {
    const struct buffer *request = &c->target->request;
    while (c->sent < request->length) {
        ssize_t n = send(c->fd, request->data + c->sent, request->length - c->sent,
                         MSG_NOSIGNAL | MSG_DONTWAIT);
        if (n < 0 && errno == EAGAIN) break;
        if (n < 0) fail("send: %s", strerror(errno));
        c->sent += n;
    }
    bool wants = c->sent < request->length;
    if (wants != c->wants_out) {
        c->wants_out = wants;
        watch(c, EPOLL_CTL_MOD);
    }
}

static void start_request(struct connection *c, long due_ns) {
    c->busy = true;
    c->is_first_byte_seen = false;
    c->state = HEAD;
    c->due_ns = due_ns;
    c->sent = c->markers = c->body.length = 0;
    running++;
    send_rest(c);
}

/* Return when the next request of the open loop is due. */
static long next_due_ns(void) {
    long in_bursts = arrivals / options.burst * options.burst;
    return start_ns + in_bursts * SECOND_NS / options.rate;
}

/* Send the requests that are due on free connections, until the end. */
static void start_what_is_due(long now) {
    while (free_connections && now < end_ns) {
        long due_ns = options.rate ? next_due_ns() : now;
        if (due_ns > now) break;
        struct connection *c = free_connections;
        free_connections = c->next_free;
        arrivals++;
        start_request(c, due_ns);
    }
}

/* Set the timer for the next due request, the end, or the timeout for responses. */
static void set_timer(long now) {
    long next = now < end_ns ? end_ns : end_ns + DRAIN_NS;
    if (options.rate && free_connections && now < end_ns) {
        long due_ns = next_due_ns();
        if (due_ns < next) next = due_ns;
    }
    struct itimerspec spec = {.it_value = {next / SECOND_NS, next % SECOND_NS}};
    timerfd_settime(timer_fd, TFD_TIMER_ABSTIME, &spec, NULL);
}

static void finish(struct connection *c, long now) {
    if (c->markers < options.markers) {
        size_t shown = c->body.length < SHOWN_BYTES ? c->body.length : SHOWN_BYTES;
        append(&c->body, "", 1);
        fail("an answer has the upstream's marker %ld times, not %ld; it ends in %s", c->markers,
             options.markers, c->body.data + c->body.length - 1 - shown);
    }
    completed++;
    running--;
    window_requests += now >= from_ns && now < end_ns;
    if (now >= from_ns && (now < end_ns || !window_requests)) {
        record(&latencies, now - c->due_ns);
        record(&first_bytes, c->first_byte_ns - c->due_ns);
    }
    c->busy = false;
    if (c->closes) {
        close(c->fd);
        c->in.length = 0;
        open_connection(c);
    }
    c->next_free = free_connections;
    free_connections = c;
}

/* Count markers in body bytes without chunked framing; a marker may span two calls. */
static void take_body(struct connection *c, const char *data, size_t length, long now) {
    size_t width = strlen(options.marker);
    size_t from = c->body.length >= width - 1 ? c->body.length - (width - 1) : 0;
    if (!c->is_first_byte_seen && length) {
        c->is_first_byte_seen = true;
        c->first_byte_ns = now;
    }
    append(&c->body, data, length);
    const char *at = c->body.data + from, *end = c->body.data + c->body.length;
    while (at < end && (at = memmem(at, end - at, options.marker, width))) {
        at += width;
        c->markers++;
        all_markers++;
        window_markers += now >= from_ns && now < end_ns;
    }
}

/* Return the value of a header in a zero-terminated head, or NULL. */
static const char *header(const char *head, const char *name) {
    const char *found = strcasestr(head, name);
    return found ? found + strlen(name) : NULL;
}

static bool take_head(struct connection *c, size_t *at) {
    char *head = c->in.data + *at;
    char *end = memmem(head, c->in.length - *at, "\r\n\r\n", 4);
    if (!end) return false;
    *end = 0;
    if (strncmp(head, "HTTP/1.1 200", 12)) {
        append(&c->in, "", 1);
        fail("%.12s: %.300s", c->in.data + *at, c->in.data + *at + strlen(c->in.data + *at) + 4);
    }
    const char *length = header(head, "\r\ncontent-length:");
    const char *coding = header(head, "\r\ntransfer-encoding:");
    const char *connection = header(head, "\r\nconnection:");
    c->closes = connection && !strncasecmp(connection + strspn(connection, " "), "close", 5);
    c->left = length ? strtoul(length, NULL, 10) : 0;
    c->state = coding ? CHUNK_SIZE : BODY;
    if (!length && !coding) fail("an answer without a length");
    *at = end + 4 - c->in.data;
    return true;
}

/* Parse a line of the chunked encoding: a chunk's size, the end of a chunk, or a trailer. */
static bool take_line(struct connection *c, size_t *at, bool *is_over) {
    char *line = c->in.data + *at;
    char *end = memmem(line, c->in.length - *at, "\r\n", 2);
    if (!end) return false;
    *at = end + 2 - c->in.data;
    if (c->state == CHUNK_SIZE) {
        c->left = strtoul(line, NULL, 16);
        c->state = c->left ? CHUNK_DATA : TRAILER;
    } else if (c->state == CHUNK_END) {
        if (end != line) fail("a chunk that is longer than its size");
        c->state = CHUNK_SIZE;
    } else {
        *is_over = end == line;
    }
    return true;
}

/* Parse the received bytes; return true when the response is complete. */
static bool take(struct connection *c, long now) {
    size_t at = 0;
    bool is_over = false, goes_on = true;
    while (goes_on && !is_over) {
        if (c->state == HEAD) {
            goes_on = take_head(c, &at);
        } else if (c->state == BODY || c->state == CHUNK_DATA) {
            size_t ready = c->in.length - at < c->left ? c->in.length - at : c->left;
            take_body(c, c->in.data + at, ready, now);
            at += ready;
            c->left -= ready;
            goes_on = c->left == 0;
            is_over = goes_on && c->state == BODY;
            if (goes_on) c->state = CHUNK_END;
        } else {
            goes_on = take_line(c, &at, &is_over);
        }
    }
    memmove(c->in.data, c->in.data + at, c->in.length - at);
    c->in.length -= at;
    return is_over;
}

static void receive(struct connection *c) {
    reserve(&c->in, READ_BYTES);
    ssize_t n = recv(c->fd, c->in.data + c->in.length, READ_BYTES, MSG_DONTWAIT);
    if (n < 0 && errno == EAGAIN) return;
    if (n <= 0 && c->busy) fail("cut off: %s", n ? strerror(errno) : "the connection was closed");
    if (n <= 0) { /* the connection was idle */
        close(c->fd);
        open_connection(c);
        return;
    }
    if (!c->busy) fail("bytes that nobody asked for");
    c->in.length += n;
    long now = now_ns();
    if (take(c, now)) finish(c, now);
}

static int compare(const void *a, const void *b) {
    long left = *(const long *)a, right = *(const long *)b;
    return (left > right) - (left < right);
}

static void print_samples(const char *name, struct samples *s) {
    double sum = 0;
    qsort(s->ns, s->count, sizeof *s->ns, compare);
    for (size_t i = 0; i < s->count; i++) sum += s->ns[i];
#define AT(share) (s->ns[(size_t)((s->count - 1) * (share))] / 1e6)
    printf(", \"%s_ms\": {\"mean\": %.4f, \"p50\": %.4f, \"p99\": %.4f, \"p99_9\": %.4f, "
           "\"max\": %.4f}",
           name, sum / s->count / 1e6, AT(0.5), AT(0.99), AT(0.999), AT(1));
}

static void print_results(void) {
    if (!latencies.count || !window_markers) fail("no answer within %g s", options.seconds);
    double seconds = options.seconds;
    long due = options.rate ? (long)((options.warmup_s + seconds) * options.rate) : arrivals;
    printf("{\"completed\": %ld, \"requests\": %ld, \"requests_per_s\": %.3f, \"markers\": %ld, "
           "\"markers_per_s\": %.1f, \"never_sent\": %ld",
           completed, window_requests, window_requests / seconds, all_markers,
           window_markers / seconds, due > arrivals ? due - arrivals : 0);
    print_samples("latency", &latencies);
    print_samples("first_byte", &first_bytes);
    printf("}\n");
}

int main(int argc, char **argv) {
    read_options(argc, argv);
    struct buffer body = read_body();
    for (int i = 0; i < target_count; i++) make_request(&targets[i], &body);
    poll_fd = epoll_create1(0);
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    struct epoll_event events[MAX_EVENTS] = {{.events = EPOLLIN, .data.ptr = NULL}};
    epoll_ctl(poll_fd, EPOLL_CTL_ADD, timer_fd, events);
    struct connection *all = calloc(options.connections, sizeof *all);
    for (int i = 0; i < options.connections; i++) {
        all[i].target = &targets[i % target_count];
        open_connection(&all[i]);
        all[i].next_free = free_connections;
        free_connections = &all[i];
    }
    start_ns = now_ns();
    from_ns = start_ns + (long)(options.warmup_s * SECOND_NS);
    end_ns = from_ns + (long)(options.seconds * SECOND_NS);
    for (;;) {
        long now = now_ns();
        start_what_is_due(now);
        if (now >= end_ns && !running) break;
        if (now >= end_ns + DRAIN_NS) fail("%d calls got no answer", running);
        set_timer(now);
        int count = epoll_wait(poll_fd, events, MAX_EVENTS, -1);
        for (int i = 0; i < count; i++) {
            struct connection *c = events[i].data.ptr;
            char expirations[8];
            if (!c) {
                while (read(timer_fd, expirations, sizeof expirations) > 0) {}
                continue;
            }
            if (events[i].events & EPOLLOUT) send_rest(c);
            if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) receive(c);
        }
    }
    print_results();
}
