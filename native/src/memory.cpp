#include "memory.h"

#include "llama-kv-cache.h"

#include <typeinfo>

namespace safex {

bool can_share_prefixes(llama_context * context) {
    llama_memory_t memory = llama_get_memory(context);
    return memory != nullptr && typeid(*memory) == typeid(llama_kv_cache) &&
           llama_model_n_swa(llama_get_model(context)) == 0;
}

}  // namespace safex
