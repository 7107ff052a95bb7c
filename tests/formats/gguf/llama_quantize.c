/* llama-quantize IN OUT TYPE: llama.cpp's own quantization, as its program of this name does it; from its library. */
#include <stdio.h>
#include <string.h>

#include "llama.h"

int main(int count, char ** given) {
    const char * names[] = {"q6_k", "q5_k_m", "q4_k_m"};
    const enum llama_ftype types[] = {LLAMA_FTYPE_MOSTLY_Q6_K, LLAMA_FTYPE_MOSTLY_Q5_K_M, LLAMA_FTYPE_MOSTLY_Q4_K_M};
    for (int i = 0; count == 4 && i < 3; i++) {
        if (strcmp(given[3], names[i]) == 0) {
            llama_model_quantize_params settings = llama_model_quantize_default_params();
            settings.ftype = types[i];
            return llama_model_quantize(given[1], given[2], &settings) != 0;
        }
    }
    fprintf(stderr, "usage: llama-quantize IN OUT q6_k|q5_k_m|q4_k_m\n");
    return 1;
}
