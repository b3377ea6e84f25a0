#include "safex/attach.h"

#include "loader.h"
#include "safex/error.h"
#include "tap.h"

#include <llama.h>

#include <array>
#include <string>

namespace safex {

struct Attachment::Impl {
    llama_context * context;
    Tap             tap;

    explicit Impl(uintptr_t address) : context(reinterpret_cast<llama_context *>(address)) { llama_set_tap(context, &tap); }

    ~Impl() { llama_set_tap(context, nullptr); }

    // Two tokens, of which only the last asks for logits, tell what is routed and whether masks can act on all of it.
    void probe() {
        std::array<llama_token, 2> tokens = {0, 0};
        tap.set_log_handler([](const RouteLog &) {});
        const int32_t status =
            llama_decode(context, llama_batch_get_one(tokens.data(), static_cast<int32_t>(tokens.size())));
        tap.set_log_handler({});
        llama_memory_clear(llama_get_memory(context), true);
        if (status != 0) {
            throw Error(ErrorCode::device, "computing two tokens failed (code " + std::to_string(status) + ")");
        }
        if (tap.routers().empty()) {
            throw Error(ErrorCode::unsupported, dense_model(read_facts(llama_get_model(context)).architecture));
        }
        if (tap.needs_all_outputs()) {
            throw Error(ErrorCode::unsupported,
                        "this architecture computes the logits of all tokens, which a mask on "
                        "somebody else's context can't follow");
        }
    }

    // Set once more, the tap makes the next decode reserve its buffers for the graph with the mask in it.
    void apply(const Mask & mask) {
        check_mask(mask, tap.routers());
        tap.set_masks({mask});
        tap.set_mask_of_sequence(0, 1);
        llama_set_tap(context, &tap);
    }
};

Attachment::Attachment(uintptr_t context, const Mask & mask) : impl_(std::make_unique<Impl>(context)) {
    impl_->probe();
    impl_->apply(mask);
}

Attachment::~Attachment() = default;

int Attachment::n_graph_reuses() const {
    return llama_perf_context(impl_->context).n_reused;
}

}  // namespace safex
