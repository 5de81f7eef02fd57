// Any bytes as what a peer has sent of a request: an answer or none, never a crash; and more bytes
// never take an answer back.
#include <cstdint>
#include <cstdlib>
#include <string>

#include "app/metrics_http.h"

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace vmshadow;
  const std::string_view sent(reinterpret_cast<const char*>(data), size);
  bool answered = false;
  for (const std::size_t bytes : {size / 2, size}) {
    const auto answer =
        app::answer_scrape(sent.substr(0, bytes), [] { return std::string("x 1\n"); });
    if (answered && !answer) std::abort();
    answered = answer.has_value();
    if (answer && !answer->starts_with("HTTP/1.1 ")) std::abort();
  }
  return 0;
}
