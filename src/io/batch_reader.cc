#include "io/batch_reader.h"

#include <unistd.h>

#include <cerrno>

namespace vmshadow::io {

Result<std::unique_ptr<BatchReader>> BatchReader::create(FileBackend backend) {
  std::unique_ptr<Uring> uring;
  if (backend != FileBackend::syscalls) {
    auto created = Uring::create();
    if (created) {
      uring = std::move(*created);
    } else if (backend == FileBackend::uring || created.error().code != Errc::unsupported) {
      return fail(std::move(created).error());
    }
  }
  return std::unique_ptr<BatchReader>(new BatchReader(std::move(uring)));
}

void BatchReader::read(std::span<ReadRequest> requests) {
  if (uring_ != nullptr && requests.size() > 1) {
    uring_->read(requests);
    return;
  }
  for (ReadRequest& request : requests) read_one(request);
}

void BatchReader::read_one(ReadRequest& request) {
  request.bytes_read = 0;
  request.error = 0;
  while (request.bytes_read < request.into.size()) {
    const MutableByteSpan rest = request.into.subspan(request.bytes_read);
    const ssize_t n = ::pread(request.fd, rest.data(), rest.size(),
                              static_cast<off_t>(request.offset + request.bytes_read));
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) request.error = errno;
    if (n <= 0) return;
    request.bytes_read += static_cast<std::size_t>(n);
  }
}

}  // namespace vmshadow::io
