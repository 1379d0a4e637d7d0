module @mlp_step {
  func.func public @main(%x: tensor<8x4xf32>, %y: tensor<8x2xf32>, %params_w1: tensor<4x16xf32> {tf.aliasing_output = 1 : i32}, %params_w2: tensor<16x2xf32> {tf.aliasing_output = 2 : i32}) -> (tensor<f32>, tensor<4x16xf32>, tensor<16x2xf32>) {
    %0 = stablehlo.dot_general %x, %params_w1, contracting_dims = [1] x [0] : (tensor<8x4xf32>, tensor<4x16xf32>) -> tensor<8x16xf32>
    %1 = stablehlo.tanh %0 : tensor<8x16xf32>
    %2 = stablehlo.dot_general %1, %params_w2, contracting_dims = [1] x [0] : (tensor<8x16xf32>, tensor<16x2xf32>) -> tensor<8x2xf32>
    %3 = stablehlo.subtract %2, %y : tensor<8x2xf32>
    %4 = stablehlo.multiply %3, %3 : tensor<8x2xf32>
    %6 = stablehlo.constant dense<0.0> : tensor<f32>
    %5 = stablehlo.reduce(%4 init: %6) applies stablehlo.add across dimensions = [0, 1] : (tensor<8x2xf32>, tensor<f32>) -> tensor<f32>
    %7 = stablehlo.constant dense<0x3D800000> : tensor<f32>
    %8 = stablehlo.multiply %5, %7 : tensor<f32>
    %9 = stablehlo.constant dense<0x3F800000> : tensor<f32>
    %10 = stablehlo.multiply %9, %7 : tensor<f32>
    %11 = stablehlo.broadcast_in_dim %10, dims = [] : (tensor<f32>) -> tensor<8x2xf32>
    %12 = stablehlo.multiply %11, %3 : tensor<8x2xf32>
    %13 = stablehlo.add %12, %12 : tensor<8x2xf32>
    %14 = stablehlo.dot_general %13, %params_w2, contracting_dims = [1] x [1] : (tensor<8x2xf32>, tensor<16x2xf32>) -> tensor<8x16xf32>
    %15 = stablehlo.dot_general %1, %13, contracting_dims = [0] x [0] : (tensor<8x16xf32>, tensor<8x2xf32>) -> tensor<16x2xf32>
    %16 = stablehlo.multiply %1, %1 : tensor<8x16xf32>
    %17 = stablehlo.constant dense<0x3F800000> : tensor<8x16xf32>
    %18 = stablehlo.subtract %17, %16 : tensor<8x16xf32>
    %19 = stablehlo.multiply %14, %18 : tensor<8x16xf32>
    %20 = stablehlo.dot_general %x, %19, contracting_dims = [0] x [0] : (tensor<8x4xf32>, tensor<8x16xf32>) -> tensor<4x16xf32>
    %21 = stablehlo.constant dense<0x3DCCCCCD> : tensor<4x16xf32>
    %22 = stablehlo.multiply %20, %21 : tensor<4x16xf32>
    %23 = stablehlo.subtract %params_w1, %22 : tensor<4x16xf32>
    %24 = stablehlo.constant dense<0x3DCCCCCD> : tensor<16x2xf32>
    %25 = stablehlo.multiply %15, %24 : tensor<16x2xf32>
    %26 = stablehlo.subtract %params_w2, %25 : tensor<16x2xf32>
    // loss, params.w1, params.w2
    return %8, %23, %26 : tensor<f32>, tensor<4x16xf32>, tensor<16x2xf32>
  }
}
