// The part of ONNX Runtime's C interface that this library uses.
//
// ONNX Runtime ships no headers in its Python wheel. Its C interface is a table of function
// pointers that only ever grows, so the slots used here are stated by number; each comment gives
// the version that added the slot where that is not the first. Version 18 is asked for (ONNX
// Runtime 1.18), and no slot is younger.
#ifndef QC_ABI_ORT_ABI_H_
#define QC_ABI_ORT_ABI_H_

#include <cstddef>
#include <cstdint>

extern "C" {

struct OrtAllocator;
struct OrtMemoryInfo;
struct OrtStatus;
struct OrtSessionOptions;
struct OrtCustomOpDomain;
struct OrtKernelInfo;
struct OrtKernelContext;
struct OrtShapeInferContext;
struct OrtOpAttr;
struct OrtValue;
struct OrtTensorTypeAndShapeInfo;

struct OrtApi {
  void (*slots[1])();  // as many as the runtime has
};

struct OrtApiBase {
  const OrtApi* (*GetApi)(std::uint32_t version);  // null where the runtime is older
  const char* (*GetVersionString)();
};

struct OrtCustomOp {
  std::uint32_t version;
  void* (*CreateKernel)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*);
  const char* (*GetName)(const OrtCustomOp*);
  const char* (*GetExecutionProviderType)(const OrtCustomOp*);
  int (*GetInputType)(const OrtCustomOp*, std::size_t);
  std::size_t (*GetInputTypeCount)(const OrtCustomOp*);
  int (*GetOutputType)(const OrtCustomOp*, std::size_t);
  std::size_t (*GetOutputTypeCount)(const OrtCustomOp*);
  void (*KernelCompute)(void*, OrtKernelContext*);
  void (*KernelDestroy)(void*);
  int (*GetInputCharacteristic)(const OrtCustomOp*, std::size_t);
  int (*GetOutputCharacteristic)(const OrtCustomOp*, std::size_t);
  int (*GetInputMemoryType)(const OrtCustomOp*, std::size_t);
  int (*GetVariadicInputMinArity)(const OrtCustomOp*);
  int (*GetVariadicInputHomogeneity)(const OrtCustomOp*);
  int (*GetVariadicOutputMinArity)(const OrtCustomOp*);
  int (*GetVariadicOutputHomogeneity)(const OrtCustomOp*);
  OrtStatus* (*CreateKernelV2)(const OrtCustomOp*, const OrtApi*, const OrtKernelInfo*, void**);
  OrtStatus* (*KernelComputeV2)(void*, OrtKernelContext*);
  OrtStatus* (*InferOutputShapeFn)(const OrtCustomOp*, OrtShapeInferContext*);
  int (*GetStartVersion)(const OrtCustomOp*);
  int (*GetEndVersion)(const OrtCustomOp*);
  std::size_t (*GetMayInplace)(int**, int**);
  void (*ReleaseMayInplace)(int*, int*);
  std::size_t (*GetAliasMap)(int**, int**);
  void (*ReleaseAliasMap)(int*, int*);
};

}  // extern "C"

static_assert(sizeof(void*) != 8 || sizeof(OrtCustomOp) == 208, "OrtCustomOp has another layout");

namespace qc::abi {

inline constexpr std::uint32_t kApiVersion = 18;

enum ErrorCode : int { kFail = 1, kInvalidArgument = 2 };
enum ElementType : int {
  kUndefined = 0,
  kFloat = 1,
  kUint8 = 2,
  kInt32 = 6,
  kInt64 = 7,
  kFloat16 = 10,
  kBfloat16 = 16,
};
enum Characteristic : int { kRequired = 0, kOptional = 1 };
enum AttributeType : int { kInt = 1, kInts = 2 };
inline constexpr int kMemoryDefault = 0;    // where the execution provider computes
inline constexpr int kMemoryCpuInput = -2;  // the host's

// A function of the table, called as f(api, arguments...).
template <std::size_t kSlot, typename Signature>
struct Function;

template <std::size_t kSlot, typename Result, typename... Arguments>
struct Function<kSlot, Result(Arguments...)> {
  Result operator()(const OrtApi* api, Arguments... arguments) const {
    return reinterpret_cast<Result (*)(Arguments...)>(api->slots[kSlot])(arguments...);
  }
};

inline constexpr Function<0, OrtStatus*(int, const char*)> CreateStatus;
inline constexpr Function<26, OrtStatus*(const char*, OrtCustomOpDomain**)> CreateCustomOpDomain;
inline constexpr Function<27, OrtStatus*(OrtCustomOpDomain*, const OrtCustomOp*)>
    CustomOpDomain_Add;
inline constexpr Function<28, OrtStatus*(OrtSessionOptions*, OrtCustomOpDomain*)> AddCustomOpDomain;
inline constexpr Function<51, OrtStatus*(const OrtValue*, void**)> GetTensorMutableData;
inline constexpr Function<57, OrtStatus*(OrtTensorTypeAndShapeInfo**)> CreateTensorTypeAndShapeInfo;
inline constexpr Function<58, OrtStatus*(OrtTensorTypeAndShapeInfo*, int)> SetTensorElementType;
inline constexpr Function<59,
                          OrtStatus*(OrtTensorTypeAndShapeInfo*, const std::int64_t*, std::size_t)>
    SetDimensions;
inline constexpr Function<60, OrtStatus*(const OrtTensorTypeAndShapeInfo*, int*)>
    GetTensorElementType;
inline constexpr Function<61, OrtStatus*(const OrtTensorTypeAndShapeInfo*, std::size_t*)>
    GetDimensionsCount;
inline constexpr Function<62,
                          OrtStatus*(const OrtTensorTypeAndShapeInfo*, std::int64_t*, std::size_t)>
    GetDimensions;
inline constexpr Function<63,
                          OrtStatus*(const OrtTensorTypeAndShapeInfo*, const char**, std::size_t)>
    GetSymbolicDimensions;
inline constexpr Function<65, OrtStatus*(const OrtValue*, OrtTensorTypeAndShapeInfo**)>
    GetTensorTypeAndShape;
inline constexpr Function<75, OrtStatus*(OrtAllocator*, std::size_t, void**)> AllocatorAlloc;
inline constexpr Function<76, OrtStatus*(OrtAllocator*, void*)> AllocatorFree;
inline constexpr Function<77, OrtStatus*(const OrtAllocator*, const OrtMemoryInfo**)>
    AllocatorGetInfo;
inline constexpr Function<85, OrtStatus*(const OrtKernelInfo*, const char*, float*)>
    KernelInfoGetAttribute_float;
inline constexpr Function<86, OrtStatus*(const OrtKernelInfo*, const char*, std::int64_t*)>
    KernelInfoGetAttribute_int64;
inline constexpr Function<90, OrtStatus*(const OrtKernelContext*, std::size_t, const OrtValue**)>
    KernelContext_GetInput;
inline constexpr Function<91, OrtStatus*(OrtKernelContext*, std::size_t, const std::int64_t*,
                                         std::size_t, OrtValue**)>
    KernelContext_GetOutput;
inline constexpr Function<93, void(OrtStatus*)> ReleaseStatus;
inline constexpr Function<99, void(OrtTensorTypeAndShapeInfo*)> ReleaseTensorTypeAndShapeInfo;
inline constexpr Function<132, void(OrtAllocator*)> ReleaseAllocator;
inline constexpr Function<163, OrtStatus*(const OrtKernelInfo*, const char*, std::int64_t*,
                                          std::size_t*)>
    KernelInfoGetAttributeArray_int64;  // 8
inline constexpr Function<193, OrtStatus*(const OrtKernelContext*, void**)>
    KernelContext_GetGPUComputeStream;  // 10
inline constexpr Function<244, OrtStatus*(const OrtKernelInfo*, char*, std::size_t*)>
    KernelInfo_GetNodeName;  // 15
inline constexpr Function<249, OrtStatus*(const OrtKernelInfo*, std::size_t, int*,
                                          const OrtValue**)>
    KernelInfoGetConstantInput_tensor;  // 15
inline constexpr Function<268, OrtStatus*(const OrtShapeInferContext*, std::size_t,
                                          OrtTensorTypeAndShapeInfo**)>
    ShapeInferContext_GetInputTypeShape;  // 17
inline constexpr Function<269, OrtStatus*(const OrtShapeInferContext*, const char*,
                                          const OrtOpAttr**)>
    ShapeInferContext_GetAttribute;  // 17
inline constexpr Function<270, OrtStatus*(const OrtShapeInferContext*, std::size_t,
                                          const OrtTensorTypeAndShapeInfo*)>
    ShapeInferContext_SetOutputTypeShape;  // 17
inline constexpr Function<271, OrtStatus*(OrtTensorTypeAndShapeInfo*, const char**, std::size_t)>
    SetSymbolicDimensions;  // 17
inline constexpr Function<272, OrtStatus*(const OrtOpAttr*, int, void*, std::size_t, std::size_t*)>
    ReadOpAttr;  // 17
inline constexpr Function<274, OrtStatus*(const OrtKernelContext*, void (*)(void*, std::size_t),
                                          std::size_t, std::size_t, void*)>
    KernelContext_ParallelFor;  // 17
inline constexpr Function<277, OrtStatus*(const OrtKernelContext*, const OrtMemoryInfo*,
                                          std::size_t, void**)>
    KernelContext_GetScratchBuffer;  // 18
inline constexpr Function<278, OrtStatus*(const OrtKernelInfo*, int, OrtAllocator**)>
    KernelInfoGetAllocator;  // 18

}  // namespace qc::abi

#endif  // QC_ABI_ORT_ABI_H_
