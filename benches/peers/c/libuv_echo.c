/* An echo server on libuv.
 *
 * usage: libuv_echo URL BUFFER      URL: tcp://HOST:PORT, udp://HOST:PORT or unix://PATH
 *
 * One shared read buffer; received bytes are sent at once (uv_try_write), and only bytes that the kernel
 * refuses are copied and queued; meanwhile, this client is not read.
 */

#include <arpa/inet.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <uv.h>

#define BACKLOG 4096

static uv_loop_t *loop;
static char *buffer;
static size_t buffer_size;

union client {
  uv_stream_t stream;
  uv_tcp_t tcp;
  uv_pipe_t pipe;
};

struct rest {
  uv_write_t request;
  char bytes[];
};

static void check(int result, const char *what) {
  if (result < 0) {
    fprintf(stderr, "libuv_echo: %s: %s\n", what, uv_strerror(result));
    exit(1);
  }
}

static void *allocated(size_t size) {
  void *memory = malloc(size);
  if (memory == NULL) check(UV_ENOMEM, "malloc");
  return memory;
}

static void lend_buffer(uv_handle_t *handle, size_t suggested, uv_buf_t *into) {
  (void)handle;
  (void)suggested;
  *into = uv_buf_init(buffer, buffer_size);
}

static void free_client(uv_handle_t *handle) { free(handle); }

static void on_read(uv_stream_t *stream, ssize_t count, const uv_buf_t *read);

static void on_written(uv_write_t *request, int status) {
  uv_stream_t *stream = request->handle;
  free(request);
  if (uv_is_closing((uv_handle_t *)stream)) return;
  if (status < 0 || uv_read_start(stream, lend_buffer, on_read) < 0)
    uv_close((uv_handle_t *)stream, free_client);
}

static void on_read(uv_stream_t *stream, ssize_t count, const uv_buf_t *read) {
  if (count == 0) return;
  if (count > 0) {
    uv_buf_t all = uv_buf_init(read->base, count);
    int sent = uv_try_write(stream, &all, 1);
    if (sent == count) return;
    if (sent == UV_EAGAIN) sent = 0;
    if (sent >= 0) {
      size_t left = count - sent;
      struct rest *rest = allocated(sizeof *rest + left);
      memcpy(rest->bytes, read->base + sent, left);
      uv_buf_t waiting = uv_buf_init(rest->bytes, left);
      uv_read_stop(stream);
      if (uv_write(&rest->request, stream, &waiting, 1, on_written) == 0) return;
      free(rest);
    }
  }
  uv_close((uv_handle_t *)stream, free_client);
}

static void on_connection(uv_stream_t *listener, int status) {
  if (status < 0) return;
  union client *client = allocated(sizeof *client);
  if (listener->type == UV_TCP)
    uv_tcp_init(loop, &client->tcp);
  else
    uv_pipe_init(loop, &client->pipe, 0);
  if (uv_accept(listener, &client->stream) < 0 ||
      uv_read_start(&client->stream, lend_buffer, on_read) < 0)
    uv_close((uv_handle_t *)client, free_client);
}

static void lend_datagram_buffer(uv_handle_t *handle, size_t suggested, uv_buf_t *into) {
  (void)handle;
  (void)suggested;
  /* libuv gives each datagram of a batch 64 KiB. */
  static char batch[32 * 65536];
  *into = uv_buf_init(batch, sizeof batch);
}

static void on_datagram(uv_udp_t *socket, ssize_t count, const uv_buf_t *read,
                        const struct sockaddr *peer, unsigned flags) {
  if (count < 0 || peer == NULL || (flags & UV_UDP_MMSG_FREE)) return;
  uv_buf_t all = uv_buf_init(read->base, count);
  uv_udp_try_send(socket, &all, 1, peer); /* lost if the kernel has no room */
}

static void announce(const char *scheme, const struct sockaddr_in *address) {
  char host[INET_ADDRSTRLEN];
  uv_ip4_name(address, host, sizeof host);
  printf("listening on %s://%s:%d\n", scheme, host, ntohs(address->sin_port));
  fflush(stdout);
}

static struct sockaddr_in inet_address(const char *text) {
  char host[64];
  const char *colon = strrchr(text, ':');
  if (colon == NULL || (size_t)(colon - text) >= sizeof host) check(UV_EINVAL, text);
  memcpy(host, text, colon - text);
  host[colon - text] = '\0';
  struct sockaddr_in address;
  check(uv_ip4_addr(host, atoi(colon + 1), &address), text);
  return address;
}

int main(int argc, char **argv) {
  if (argc != 3) {
    fprintf(stderr, "usage: libuv_echo URL BUFFER\n");
    return 2;
  }
  const char *url = argv[1];
  buffer_size = strtoul(argv[2], NULL, 10);
  buffer = allocated(buffer_size);
  loop = uv_default_loop();
  struct sockaddr_in address;
  int length = sizeof address;
  if (strncmp(url, "tcp://", 6) == 0) {
    static uv_tcp_t listener;
    address = inet_address(url + 6);
    check(uv_tcp_init(loop, &listener), "socket");
    check(uv_tcp_bind(&listener, (struct sockaddr *)&address, 0), "bind");
    check(uv_listen((uv_stream_t *)&listener, BACKLOG, on_connection), "listen");
    /* Accepted sockets inherit it. */
    uv_os_fd_t descriptor;
    int on = 1;
    check(uv_fileno((uv_handle_t *)&listener, &descriptor), "fileno");
    setsockopt(descriptor, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    check(uv_tcp_getsockname(&listener, (struct sockaddr *)&address, &length), "getsockname");
    announce("tcp", &address);
  } else if (strncmp(url, "unix://", 7) == 0) {
    static uv_pipe_t listener;
    check(uv_pipe_init(loop, &listener, 0), "socket");
    check(uv_pipe_bind(&listener, url + 7), "bind");
    check(uv_listen((uv_stream_t *)&listener, BACKLOG, on_connection), "listen");
    printf("listening on %s\n", url);
    fflush(stdout);
  } else if (strncmp(url, "udp://", 6) == 0) {
    static uv_udp_t socket;
    address = inet_address(url + 6);
    check(uv_udp_init_ex(loop, &socket, AF_INET | UV_UDP_RECVMMSG), "socket");
    check(uv_udp_bind(&socket, (struct sockaddr *)&address, 0), "bind");
    check(uv_udp_recv_start(&socket, lend_datagram_buffer, on_datagram), "receive");
    check(uv_udp_getsockname(&socket, (struct sockaddr *)&address, &length), "getsockname");
    announce("udp", &address);
  } else {
    check(UV_EINVAL, url);
  }
  return uv_run(loop, UV_RUN_DEFAULT);
}
