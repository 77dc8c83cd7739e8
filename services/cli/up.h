// `consilium up`: the whole system on one machine, in the foreground.
#pragma once
#include "services/cli/up_options.h"

namespace consilium {

// Exit code: 0 after a stop signal, else 1 with one line on stderr. With --once: that of the question.
int RunUp(UpOptions options);

}  // namespace consilium
