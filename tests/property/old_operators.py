"""Operators of opsets 7 to 20 as text, in every form that changed on the way to 21."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx import numpy_helper

RANDOM = np.random.default_rng(0)
X = "float[2, 3, 4, 4] x"
Y = "float[a, b, c, d] y"


@dataclass(frozen=True)
class Operator:
    """A model of a few nodes."""

    first: int
    last: int
    """The opsets in which it is right."""
    body: str
    inputs: str
    outputs: str
    constants: dict[str, np.ndarray] = field(default_factory=dict)

    def model(self, opset: int) -> onnx.ModelProto:
        header = f'<ir_version: {9 if opset < 21 else 10}, opset_import: ["" : {opset}]>'
        made = onnx.parser.parse_model(
            f"{header}\ng ({self.inputs}) => ({self.outputs}) {{ {self.body} }}"
        )
        for name, values in self.constants.items():
            made.graph.initializer.append(numpy_helper.from_array(np.asarray(values), name))
        return made


OPERATORS: dict[str, Operator] = {}


def add(
    name: str,
    first: int,
    last: int,
    body: str,
    *,
    ins: str = X,
    outs: str = Y,
    **constants: np.ndarray | np.generic,
) -> None:
    OPERATORS[name] = Operator(first, last, body, ins, outs, constants)


def normal(*shape: int) -> np.ndarray:
    return RANDOM.standard_normal(shape).astype(np.float32)


def positive(*shape: int) -> np.ndarray:
    return np.abs(normal(*shape))


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def codes(*shape: int) -> np.ndarray:
    return RANDOM.integers(-120, 120, shape).astype(np.int8)


add(
    "batch normalization",
    7,
    20,
    "y=BatchNormalization<epsilon=0.001>(x,s,b,m,v)",
    s=normal(3),
    b=normal(3),
    m=normal(3),
    v=positive(3),
)
add("upsample7", 7, 8, 'y=Upsample<mode="nearest",scales=[1.0,1.0,2.0,2.0]>(x)')
add("upsample7lin", 7, 8, 'y=Upsample<mode="linear",scales=[1.0,1.0,2.0,2.0]>(x)')
for m in ("nearest", "linear"):
    add("upsample9" + m, 9, 9, f'y=Upsample<mode="{m}">(x,s)', s=np.array([1, 1, 2, 3], np.float32))
    add("resize10" + m, 10, 10, f'y=Resize<mode="{m}">(x,s)', s=np.array([1, 1, 2, 3], np.float32))
    add(
        "resize10down" + m,
        10,
        10,
        f'y=Resize<mode="{m}">(x,s)',
        s=np.array([1, 1, 0.5, 0.75], np.float32),
    )
    for ct in ("half_pixel", "asymmetric", "pytorch_half_pixel", "align_corners") + (
        ("tf_half_pixel_for_nn",) if m == "nearest" else ()
    ):
        add(
            f"resize11{m}{ct}",
            11,
            20 if ct != "tf_half_pixel_for_nn" else 12,
            f'y=Resize<mode="{m}",coordinate_transformation_mode="{ct}",nearest_mode="floor">'
            "(x,r,s)",
            r=np.zeros(0, np.float32),
            s=np.array([1, 1, 2, 3], np.float32),
        )
add(
    "resize11sizes",
    11,
    20,
    'y=Resize<mode="cubic">(x,r,s,z)',
    r=np.zeros(0, np.float32),
    s=np.zeros(0, np.float32),
    z=ints(2, 3, 7, 9),
)
add("resize13sizes", 13, 20, 'y=Resize<mode="linear">(x,,,z)', z=ints(2, 3, 7, 9))
add(
    "resize11roi",
    11,
    20,
    'y=Resize<mode="linear",coordinate_transformation_mode="tf_crop_and_resize",'
    "extrapolation_value=10.0>(x,r,s)",
    r=np.array([0, 0, 0.2, 0.2, 1, 1, 0.7, 1.2], np.float32),
    s=np.array([1, 1, 1, 1], np.float32),
)
for op in ("Softmax", "LogSoftmax", "Hardmax"):
    for ax in (None, 0, 1, 2, 3):
        a = "" if ax is None else f"<axis={ax}>"
        add(f"{op}{ax}", 7, 20, f"y={op}{a}(x)")
    add(f"{op}neg", 11, 20, f"y={op}<axis=-1>(x)")
    add(f"{op}neg2", 11, 20, f"y={op}<axis=-3>(x)")
    add(f"{op}dyn", 7, 20, f"y={op}<axis=1>(x)", ins="float[a,b,c,d] x")
    add(
        f"{op}norank",
        7,
        20,
        f"k=Flatten<axis=2>(x) t=Reshape(x,s) y={op}<axis=1>(t)",
        ins="float[a,b,c,d] x, int64[n] s",
    )
add("slice1", 7, 9, "y=Slice<starts=[0,1],ends=[2,9223372036854775807],axes=[0,2]>(x)")
add("slice1noax", 7, 9, "y=Slice<starts=[0,1],ends=[2,3]>(x)")
add(
    "slice10",
    10,
    20,
    "y=Slice(x,s,e,a,t)",
    s=ints(0, 3),
    e=ints(9, -9),
    a=ints(1, 3),
    t=ints(1, -2),
)
add("pad2", 7, 10, 'y=Pad<mode="constant",pads=[0,0,1,1,0,0,2,2],value=1.5>(x)')
add("pad2refl", 7, 10, 'y=Pad<mode="reflect",pads=[0,0,1,1,0,0,2,2]>(x)')
add("pad2def", 7, 10, "y=Pad<pads=[0,0,1,1,0,0,2,2]>(x)")
add("pad11", 11, 20, "y=Pad(x,p,v)", p=ints(0, 0, 1, 1, 0, 0, 2, 2), v=np.float32(1.5))
add("pad11edge", 11, 20, 'y=Pad<mode="edge">(x,p)', p=ints(0, 0, 1, 1, 0, 0, 2, 2))
add("clip6", 7, 10, "y=Clip<min=-0.5,max=0.5>(x)")
add("clip6min", 7, 10, "y=Clip<min=-0.5>(x)")
add("clip6none", 7, 10, "y=Clip(x)")
add("clip11", 11, 20, "y=Clip(x,a,b)", a=np.float32(-0.5), b=np.float32(0.5))
add("clip11max", 11, 20, "y=Clip(x,,b)", b=np.float32(0.5))
add("topk1", 7, 9, "y,j=TopK<k=2,axis=1>(x)", outs="float[a,b,c,d] y, int64[e,f,g,h] j")
add("topk10", 10, 20, "y,j=TopK<axis=1>(x,k)", outs="float[a,b,c,d] y, int64[e,f,g,h] j", k=ints(2))
add(
    "topk11",
    11,
    20,
    "y,j=TopK<axis=-1,largest=0>(x,k)",
    outs="float[a,b,c,d] y, int64[e,f,g,h] j",
    k=ints(2),
)
add("dropout7", 7, 11, "y=Dropout<ratio=0.3>(x)")
add("dropout10mask", 10, 11, "y,m=Dropout<ratio=0.3>(x)", outs="float[a,b,c,d] y, bool[e,f,g,h] m")
add("dropout7mask", 7, 9, "y,m=Dropout<ratio=0.3>(x)", outs="float[a,b,c,d] y, float[e,f,g,h] m")
add("dropout7maskused", 7, 9, "p,m=Dropout<ratio=0.3>(x) y=Add(p,m)")
add(
    "resize10mixedlin",
    10,
    10,
    'y=Resize<mode="linear">(x,s)',
    s=np.array([1, 1, 2, 0.5], np.float32),
)
add(
    "qdq1",
    10,
    20,
    "a=QuantizeLinear(x,s,z) y=DequantizeLinear(a,s,z)",
    s=np.array([0.05], np.float32),
    z=np.array([128], np.uint8),
)
add("dropout12", 12, 20, "y=Dropout(x)")
add("dropout12r", 12, 20, "y=Dropout(x,r)", r=np.float32(0.3))
add(
    "squeeze", 7, 12, "t=Unsqueeze<axes=[0,3]>(x) y=Squeeze<axes=[0]>(t)", outs="float[a,b,c,d,e] y"
)
add("squeezeall", 7, 20, "y=Squeeze(x)", ins="float[1,3,1,4] x", outs="float[a,b] y")
add(
    "squeeze13",
    13,
    20,
    "t=Unsqueeze(x,a) y=Squeeze(t,b)",
    outs="float[a,b,c,d,e] y",
    a=ints(0, 3),
    b=ints(0),
)
add(
    "squeezeneg",
    11,
    12,
    "t=Unsqueeze<axes=[-1,0]>(x) y=Squeeze<axes=[-6]>(t)",
    outs="float[a,b,c,d,e] y",
)
for op in [
    "ReduceSum",
    "ReduceMean",
    "ReduceMax",
    "ReduceMin",
    "ReduceProd",
    "ReduceL1",
    "ReduceL2",
    "ReduceLogSumExp",
    "ReduceSumSquare",
]:
    hi = 12 if op == "ReduceSum" else 19 if op in ("ReduceMax", "ReduceMin") else 17
    hi = 12 if op == "ReduceSum" else 17
    add(op + "ax", 7, hi, f"y={op}<axes=[1,2],keepdims=0>(x)", outs="float[a,b] y")
    add(op + "all", 7, 20, f"y={op}<keepdims=0>(x)", outs="float y")
    add(op + "keep", 7, 20, f"y={op}(x)")
    add(op + "neg", 11, hi, f"y={op}<axes=[-1]>(x)")
add("ReduceLogSum", 7, 17, "e=Exp(x) y=ReduceLogSum<axes=[1]>(e)")
add("ReduceSum13", 13, 20, "y=ReduceSum(x,a)", a=ints(1))
add("ReduceSumnoop", 13, 20, "y=ReduceSum<noop_with_empty_axes=1>(x)")
add("split2", 7, 12, "p,q=Split<axis=1,split=[1,2]>(x) y=Concat<axis=1>(q,p)")
add("split2even", 7, 17, "p,q=Split<axis=0>(x) y=Concat<axis=0>(q,p)")
add("split13", 13, 17, "p,q=Split<axis=1>(x,s) y=Concat<axis=1>(q,p)", s=ints(1, 2))
add("flatten", 7, 20, "y=Flatten<axis=2>(x)", outs="float[a,b] y")
add(
    "gemm",
    7,
    20,
    "f=Flatten(x) y=Gemm<alpha=0.5,beta=2.0,transB=1>(f,w,c)",
    outs="float[a,b] y",
    w=normal(5, 48),
    c=normal(5),
)
add("gemm11", 11, 20, "f=Flatten(x) y=Gemm<transB=1>(f,w)", outs="float[a,b] y", w=normal(5, 48))
add("matmul", 7, 20, "y=MatMul(x,w)", w=normal(4, 5))
add("cast", 7, 20, "c=Cast<to=7>(x) d=Cast<to=1>(c) y=Mul(d,x)")
add("castbool", 7, 20, "c=Cast<to=9>(x) d=Cast<to=1>(c) y=Mul(d,x)")
add(
    "nms",
    10,
    20,
    "y=NonMaxSuppression(b,q,k,t,u)",
    ins="float[1,6,4] b, float[1,2,6] q",
    outs="int64[a,b0] y",
    k=ints(3),
    t=np.array([0.5], np.float32),
    u=np.array([0.0], np.float32),
)
add("avgpool", 7, 18, "y=AveragePool<kernel_shape=[3,3],pads=[1,1,1,1],count_include_pad=1>(x)")
add("avgpool0", 7, 18, "y=AveragePool<kernel_shape=[3,3],pads=[1,1,1,1],strides=[2,2]>(x)")
add(
    "avgpoolceil",
    10,
    20,
    "y=AveragePool<kernel_shape=[3,3],strides=[2,2],ceil_mode=1>(x)",
    ins="float[1,3,6,6] x",
)
add(
    "avgpoolceilpad",
    10,
    20,
    "y=AveragePool<kernel_shape=[3,3],strides=[2,2],ceil_mode=1,"
    "pads=[1,1,1,1],count_include_pad=1>(x)",
    ins="float[1,3,6,6] x",
)
add("maxpool", 7, 20, "y=MaxPool<kernel_shape=[2,2],strides=[2,2]>(x)")
add(
    "maxpoolidx",
    8,
    20,
    "y,j=MaxPool<kernel_shape=[2,2],strides=[2,2]>(x)",
    outs="float[a,b,c,d] y, int64[e,f,g,h] j",
)
add("maxpoolsame", 7, 20, 'y=MaxPool<kernel_shape=[3,3],strides=[2,2],auto_pad="SAME_UPPER">(x)')
add("lppool", 7, 20, "y=LpPool<kernel_shape=[2,2]>(x)")
add("gap", 7, 20, "y=GlobalAveragePool(x)")
add(
    "conv",
    7,
    20,
    "y=Conv<kernel_shape=[3,3],pads=[1,1,1,1]>(x,w,b)",
    w=normal(5, 3, 3, 3),
    b=normal(5),
)
add(
    "convt",
    7,
    20,
    "y=ConvTranspose<kernel_shape=[3,3],strides=[2,2],output_padding=[1,1]>(x,w)",
    w=normal(3, 5, 3, 3),
)
add(
    "lstm",
    7,
    13,
    "y,h,c=LSTM<hidden_size=4>(t,w,r,b)",
    ins="float[5,2,3] t",
    outs="float[a,b0,c0,d] y, float[e,f,g] h, float[i0,j,k] c",
    w=normal(1, 16, 3),
    r=normal(1, 16, 4),
    b=normal(1, 32),
)
add(
    "lstmbi",
    7,
    20,
    'y,h,c=LSTM<hidden_size=4,direction="bidirectional">(t,w,r,b)',
    ins="float[5,2,3] t",
    outs="float[a,b0,c0,d] y, float[e,f,g] h, float[i0,j,k] c",
    w=normal(2, 16, 3),
    r=normal(2, 16, 4),
    b=normal(2, 32),
)
add(
    "gru",
    7,
    20,
    "y,h=GRU<hidden_size=4,linear_before_reset=1>(t,w,r,b)",
    ins="float[5,2,3] t",
    outs="float[a,b0,c0,d] y, float[e,f,g] h",
    w=normal(1, 12, 3),
    r=normal(1, 12, 4),
    b=normal(1, 24),
)
add(
    "rnn",
    7,
    20,
    "y,h=RNN<hidden_size=4>(t,w,r,b)",
    ins="float[5,2,3] t",
    outs="float[a,b0,c0,d] y, float[e,f,g] h",
    w=normal(1, 4, 3),
    r=normal(1, 4, 4),
    b=normal(1, 8),
)
for op in [
    "Relu",
    "Abs",
    "Neg",
    "Exp",
    "Sigmoid",
    "Tanh",
    "Softplus",
    "Elu",
    "Selu",
    "Softsign",
    "HardSigmoid",
    "LeakyRelu",
    "Ceil",
    "Floor",
    "Reciprocal",
]:
    add(op, 7, 20, f"y={op}(x)")
for op in ["Erf", "Sign", "IsNaN", "Sinh", "Cosh", "Asinh", "Atan"]:
    add(op, 9, 20, f"y={op}(x)" if op != "IsNaN" else "z=IsNaN(x) y=Cast<to=1>(z)")
add("Round", 11, 20, "y=Round(x)")
add("Sqrt", 7, 20, "a=Abs(x) y=Sqrt(a)")
add("Log", 7, 20, "a=Abs(x) y=Log(a)")
for op in ["Add", "Sub", "Mul", "Div", "Pow"]:
    add(op, 7, 20, f"a=Abs(x) y={op}(a,w)", w=positive(4, 4))
add("addint", 7, 20, "y=Add(x,w)", ins="int64[2,3] x", outs="int64[a,b] y", w=ints(1, 2, 3))
add("prelu", 7, 20, "y=PRelu(x,w)", w=normal(3, 1, 1))
for op in ["Max", "Min", "Sum", "Mean"]:
    add(op, 8, 20, f"y={op}(x,w,x)", w=normal(4))
    add(op + "7", 7, 20, f"y={op}(x,x)")
for op in ["Less", "Greater", "Equal"]:
    add(op, 7 if op != "Equal" else 11, 20, f"z={op}(x,w) y=Cast<to=1>(z)", w=normal(4))
add(
    "equal7",
    7,
    20,
    "z=Equal(x,w) y=Cast<to=1>(z)",
    ins="int64[2,3] x",
    outs="float[a,b] y",
    w=ints(1, 2, 3),
)
add("and", 7, 20, "p=Cast<to=9>(x) q=Not(p) z=Or(p,q) y=Cast<to=1>(z)")
add("where", 9, 20, "p=Cast<to=9>(x) y=Where(p,x,w)", w=normal(4))
add("gather", 7, 20, "y=Gather<axis=1>(x,k)", k=ints(0, 2))
add("gatherneg", 11, 20, "y=Gather<axis=-1>(x,k)", k=ints(0, -1))
add("gathernd", 11, 20, "y=GatherND(x,k)", outs="float[a,b,c] y", k=np.array([[0, 1], [1, 2]]))
add(
    "gatherel",
    11,
    20,
    "y=GatherElements<axis=3>(x,k)",
    ins="float[1,1,2,2] x",
    k=np.array([[[[0, 1], [1, 0]]]]),
)
add(
    "scatter9",
    9,
    10,
    "y=Scatter<axis=3>(x,k,u)",
    ins="float[1,1,2,2] x",
    k=np.array([[[[0, 1], [1, 0]]]]),
    u=normal(1, 1, 2, 2),
)
add(
    "scatterel",
    11,
    20,
    "y=ScatterElements<axis=3>(x,k,u)",
    ins="float[1,1,2,2] x",
    k=np.array([[[[0, 1], [1, 0]]]]),
    u=normal(1, 1, 2, 2),
)
add("scatternd", 11, 20, "y=ScatterND(x,k,u)", k=np.array([[0], [1]]), u=normal(2, 3, 4, 4))
add(
    "onehot",
    9,
    20,
    "y=OneHot<axis=1>(k,d,v)",
    ins="int64[2,3] k",
    outs="float[a,b,c] y",
    d=ints(5),
    v=normal(2),
)
add("expand", 8, 20, "y=Expand(x,s)", ins="float[1,3,1,4] x", s=ints(2, 3, 4, 4))
add("tile", 7, 20, "y=Tile(x,s)", s=ints(1, 2, 1, 2))
add("reshape", 7, 20, "y=Reshape(x,s)", s=ints(0, -1, 2, 2))
add("shape", 7, 20, "s=Shape(x) y=Cast<to=1>(s)", outs="float[a] y")
add("size", 7, 20, "s=Size(x) y=Cast<to=1>(s)", outs="float y")
add("cos", 9, 20, "s=Shape(x) y=ConstantOfShape(s)")
add("eyelike", 9, 20, "y=EyeLike<k=1>(x)", ins="float[3,4] x", outs="float[a,b] y")
add("depthtospace", 7, 20, "y=DepthToSpace<blocksize=2>(x)", ins="float[1,8,2,2] x")
add("spacetodepth", 7, 20, "y=SpaceToDepth<blocksize=2>(x)")
add("instancenorm", 7, 20, "y=InstanceNormalization(x,s,b)", s=normal(3), b=normal(3))
add("lrn", 7, 20, "y=LRN<size=3>(x)")
add("mvn", 9, 20, "y=MeanVarianceNormalization(x)")
add("lpnorm", 7, 20, "y=LpNormalization<axis=1>(x)")
add("argmax", 7, 20, "k=ArgMax<axis=1>(x) y=Cast<to=1>(k)")
add("argminneg", 11, 20, "k=ArgMin<axis=-1,keepdims=0>(x) y=Cast<to=1>(k)", outs="float[a,b,c] y")
add("cumsum", 11, 20, "y=CumSum<reverse=1>(x,a)", a=np.int64(1))
add("nonzero", 9, 20, "y=NonZero(x)", outs="int64[a,b] y")
add("compress", 9, 20, "y=Compress<axis=1>(x,c)", c=np.array([True, False, True]))
add("unique", 11, 20, "y=Unique(x)", outs="float[a] y")
add("mod", 10, 20, "y=Mod<fmod=1>(x,w)", w=positive(4))
add("isinf", 10, 20, "z=IsInf(x) y=Cast<to=1>(z)")
add("thresholded", 10, 20, "y=ThresholdedRelu(x)")
add("reverseseq", 10, 20, "y=ReverseSequence<time_axis=1,batch_axis=0>(x,l)", l=ints(2, 3))
add(
    "roialign",
    10,
    15,
    "y=RoiAlign<output_height=2,output_width=2,sampling_ratio=2>(x,r,b)",
    r=np.array([[0, 0, 3, 3], [1, 1, 2, 3]], np.float32),
    b=ints(0, 1),
)
add(
    "roialign16",
    16,
    20,
    "y=RoiAlign<output_height=2,output_width=2,sampling_ratio=2>(x,r,b)",
    r=np.array([[0, 0, 3, 3], [1, 1, 2, 3]], np.float32),
    b=ints(0, 1),
)
add("einsum", 12, 20, 'y=Einsum<equation="abcd,de->abce">(x,w)', w=normal(4, 5))
add(
    "range",
    11,
    20,
    "y=Range(a,b,c)",
    ins="float a",
    outs="float[n] y",
    b=np.float32(9),
    c=np.float32(2),
)
add("gridsample", 16, 19, "y=GridSample(x,g)", g=normal(2, 3, 3, 2))
add("gridsamplecubic", 16, 19, 'y=GridSample<mode="bicubic">(x,g)', g=normal(2, 3, 3, 2))
add(
    "groupnorm",
    18,
    20,
    "y=GroupNormalization<num_groups=2>(x,s,b)",
    ins="float[2,4,3,3] x",
    s=normal(2),
    b=normal(2),
)
add("layernorm", 17, 20, "y=LayerNormalization(x,s,b)", s=normal(4), b=normal(4))
add(
    "maxunpool",
    9,
    20,
    "p,j=MaxPool<kernel_shape=[2,2],strides=[2,2]>(x) "
    "y=MaxUnpool<kernel_shape=[2,2],strides=[2,2]>(p,j)",
)
add("celu", 12, 20, "y=Celu(x)")
add("hardswish", 14, 20, "y=HardSwish(x)")
add("trilu", 14, 20, "y=Trilu(x)")
add("mish", 18, 20, "y=Mish(x)")
add("dft", 17, 19, "y=DFT<axis=1>(x)", ins="float[2,8,1] x", outs="float[a,b,c] y")
add(
    "ifb",
    7,
    12,
    "y=If(c)<then_branch=p() => (float[a,b,d,e] t){ s=ReduceSum<axes=[1]>(x) "
    "t=Mul(s,x)}, else_branch=q() => (float[a,b,d,e] u){v=Squeeze<axes=[0]>(x) "
    "w=Softmax<axis=1>(v) u=Unsqueeze<axes=[0]>(w)}>",
    ins="float[1,3,4,4] x, bool c",
)
add(
    "ifmean",
    7,
    17,
    "y=If(c)<then_branch=p() => (float[k1,k2,k3,k4] t){ t=ReduceMean<axes=[3]>(x) }, "
    "else_branch=q() => (float[k5,k6,k7,k8] u){m,n=Split<axis=3>(x) "
    "u=ReduceMax<axes=[3]>(m)}>",
    ins="float[1,3,4,4] x, bool c",
)
add(
    "nestedif",
    7,
    9,
    "y=If(c)<then_branch=p() => (float[k1,k2,k3,k4] t){ t=If(c)<then_branch=pp() "
    "=> (float[j1,j2,j3,j4] tt){ tt=Softmax<axis=1>(x) }, else_branch=qq() "
    "=> (float[j5,j6,j7,j8] uu){ uu=Clip<min=0.0,max=1.0>(x)}> }, else_branch=q() "
    "=> (float[k5,k6,k7,k8] u){ u0=Pad<pads=[0,0,1,1,0,0,1,1]>(x) "
    "u=Slice<starts=[1,1],ends=[5,5],axes=[2,3]>(u0)}>",
    ins="float[1,3,4,4] x, bool c",
)
add(
    "loop",
    7,
    12,
    "y,s=Loop(n,,x)<body=b(int64 i, bool ci, float[1,3] a) => (bool co, "
    "float[1,3] ao, float[e,f] sc){ co=Identity(ci) q=Squeeze<axes=[0]>(a) "
    "w=Softmax<axis=0>(q) ao=Unsqueeze<axes=[0]>(w) "
    "z,zz=Split<axis=1,split=[1,2]>(a) sc=ReduceSum<axes=[1]>(zz) }>",
    ins="float[1,3] x",
    outs="float[a0,b0] y, float[e,f,g] s",
    n=np.int64(3),
)
add(
    "upsif",
    9,
    9,
    "y=If(c)<then_branch=p() => (float[a,b,d,e] t){ t=Upsample(x,s) }, "
    "else_branch=q() => (float[a,b,d,e] u){u=Upsample(x,s)}>",
    ins="float[1,3,4,4] x, bool c",
    s=np.array([1, 1, 2, 2], np.float32),
)
# q/dq
add(
    "qdq",
    10,
    20,
    "a=QuantizeLinear(x,s,z) y=DequantizeLinear(a,s,z)",
    s=np.float32(0.05),
    z=np.uint8(128),
)
add("qdqnozp", 10, 20, "a=QuantizeLinear(x,s) y=DequantizeLinear(a,s)", s=np.float32(0.05))
add(
    "qdqaxis",
    13,
    20,
    "a=QuantizeLinear<axis=1>(x,s,z) y=DequantizeLinear<axis=1>(a,s,z)",
    s=np.array([0.05, 0.06, 0.07], np.float32),
    z=np.array([0, 1, -3], np.int8),
)
add(
    "qdqaxisdef",
    13,
    20,
    "a=QuantizeLinear(x,s,z) y=DequantizeLinear(a,s,z)",
    s=np.array([0.05, 0.06, 0.07], np.float32),
    z=np.array([0, 1, 3], np.uint8),
)
add(
    "dqw",
    10,
    20,
    "v=DequantizeLinear(w,s,z) y=MatMul(x,v)",
    w=codes(4, 6),
    s=np.float32(0.02),
    z=np.int8(0),
)
add(
    "dqwaxis",
    13,
    20,
    "v=DequantizeLinear<axis=1>(w,s,z) y=MatMul(x,v)",
    w=codes(4, 6),
    s=positive(6),
    z=np.zeros(6, np.int8),
)
add(
    "dqwaxis0",
    13,
    20,
    "v=DequantizeLinear<axis=0>(w,s) y=MatMul(x,v)",
    w=codes(4, 6),
    s=positive(4),
)
add(
    "dqwaxisneg",
    13,
    20,
    "v=DequantizeLinear<axis=-1>(w,s) y=MatMul(x,v)",
    w=codes(4, 6),
    s=positive(6),
)
add(
    "dqi32",
    10,
    20,
    "v=DequantizeLinear(w,s) y=Add(x,v)",
    w=np.arange(4, dtype=np.int32),
    s=np.float32(0.02),
)
add(
    "qdqhalf",
    19,
    20,
    "h=Cast<to=10>(x) a=QuantizeLinear(h,s,z) b=DequantizeLinear(a,s,z) y=Cast<to=1>(b)",
    s=np.float16(0.05),
    z=np.uint8(128),
)
add("dql", 11, 20, "a,s,z=DynamicQuantizeLinear(x) y=DequantizeLinear(a,s,z)")
add(
    "qlinmm",
    10,
    20,
    "a=QuantizeLinear(x,s,z) b=QLinearMatMul(a,s,z,w,s,zw,s2,z) y=DequantizeLinear(b,s2,z)",
    s=np.float32(0.05),
    z=np.uint8(128),
    w=codes(4, 6),
    zw=np.int8(0),
    s2=np.float32(0.2),
)
add(
    "mmint",
    10,
    20,
    "a=QuantizeLinear(x,s,z) b=MatMulInteger(a,w,z) y=Cast<to=1>(b)",
    s=np.float32(0.05),
    z=np.uint8(128),
    w=codes(4, 6),
)
add(
    "sharedscale",
    13,
    20,
    "a=QuantizeLinear(x,s,z) b=DequantizeLinear(a,s,z) "
    "v=DequantizeLinear<axis=0>(w,sw,zw) m=MatMul(b,v) a2=QuantizeLinear(m,s,z) "
    "y=DequantizeLinear(a2,s,z)",
    s=np.float32(0.05),
    z=np.int8(0),
    w=codes(4, 6),
    sw=positive(4),
    zw=np.zeros(4, np.int8),
)
