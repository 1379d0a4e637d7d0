module @custom_call {
  func.func public @main(%stack: tensor<4x8xf32> {tf.aliasing_output = 0 : i32}, %layer: tensor<i32>) -> (tensor<4x8xf32>, tensor<i32>) {
    %0:2 = func.call @in_place.0(%stack, %layer) : (tensor<4x8xf32>, tensor<i32>) -> (tensor<4x8xf32>, tensor<i32>)
    // stack, layer
    return %0#0, %0#1 : tensor<4x8xf32>, tensor<i32>
  }
  func.func private @in_place.0(%arg0: tensor<4x8xf32>, %arg1: tensor<i32>) -> (tensor<4x8xf32>, tensor<i32>) {
    %0 = stablehlo.constant dense<0x3F800000> : tensor<4x8xf32>
    %1 = stablehlo.add %arg0, %0 : tensor<4x8xf32>
    return %1, %arg1 : tensor<4x8xf32>, tensor<i32>
  }
}
