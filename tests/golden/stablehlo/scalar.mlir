module @scalar {
  func.func public @main(%x: tensor<f32>) -> (tensor<f32>) {
    %0 = stablehlo.sine %x : tensor<f32>
    %1 = stablehlo.multiply %x, %0 : tensor<f32>
    %2 = stablehlo.constant dense<0x40000000> : tensor<f32>
    %3 = stablehlo.add %1, %2 : tensor<f32>
    // y
    return %3 : tensor<f32>
  }
}
