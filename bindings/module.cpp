// safex._native: registers what the headers of the core offer. Conversion only, no logic.
#include "bind.h"

NB_MODULE(_native, m) {
    m.doc() = "Native core of safex: the patched llama.cpp session with its expert tap.";
    bind_attach(m);
    bind_bootstrap(m);
    bind_error(m);
    bind_gguf_types(m);
    bind_gguf_file(m);
    bind_gguf_slices(m);
    bind_session(m);
}
