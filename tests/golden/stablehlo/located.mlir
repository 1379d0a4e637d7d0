module @located {
  func.func public @main(%x: tensor<2xf32>) -> (tensor<2xf32>) {
    %0 = stablehlo.tanh %x : tensor<2xf32> loc("tests/engine/stablehlo/located.rs":9:19)
    %1 = stablehlo.constant dense<0x3F800000> : tensor<2xf32> loc("tests/engine/stablehlo/located.rs":10:23)
    %2 = stablehlo.add %0, %1 : tensor<2xf32> loc("tests/engine/stablehlo/located.rs":10:23)
    // y
    return %2 : tensor<2xf32>
  }
}
