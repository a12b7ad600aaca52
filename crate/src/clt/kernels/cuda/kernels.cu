// All kernels as one module: one PTX text, loaded once.
#include "top.cu"
#include "lists.cu"
#include "decode.cu"
#include "groups.cu"
#include "learn.cu"
#include "report.cu"
#include "edges.cu"
