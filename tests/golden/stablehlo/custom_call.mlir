module @custom_call {
  func.func public @main(%stack: tensor<4x8xf32> {tf.aliasing_output = 0 : i32}, %layer: tensor<i32>) -> (tensor<4x8xf32>, tensor<i32>) {
    %0:2 = func.call @in_place.0(%stack, %layer) : (tensor<4x8xf32>, tensor<i32>) -> (tensor<4x8xf32>, tensor<i32>)
    %2 = stablehlo.custom_call @LayoutConstraint(%0#0) {operand_layouts = [dense<[1, 0]> : tensor<2xindex>], result_layouts = [dense<[1, 0]> : tensor<2xindex>]} : (tensor<4x8xf32>) -> tensor<4x8xf32>
    %1 = stablehlo.optimization_barrier %2 : tensor<4x8xf32>
    // stack, layer
    return %1, %0#1 : tensor<4x8xf32>, tensor<i32>
  }
  func.func private @in_place.0(%arg0: tensor<4x8xf32>, %arg1: tensor<i32>) -> (tensor<4x8xf32>, tensor<i32>) {
    %0:2 = stablehlo.custom_call @tpu_custom_call(%arg0, %arg1) {backend_config = "{\22custom_call_config\22: {\0A\22body\22: \22\5C\5C\22}}", kernel_name = "in_place", operand_layouts = [dense<[1, 0]> : tensor<2xindex>, dense<> : tensor<0xindex>], result_layouts = [dense<[1, 0]> : tensor<2xindex>, dense<> : tensor<0xindex>], output_operand_aliases = [#stablehlo.output_operand_alias<output_tuple_indices = [0], operand_index = 0, operand_tuple_indices = []>, #stablehlo.output_operand_alias<output_tuple_indices = [1], operand_index = 1, operand_tuple_indices = []>]} : (tensor<4x8xf32>, tensor<i32>) -> (tensor<4x8xf32>, tensor<i32>)
    return %0#0, %0#1 : tensor<4x8xf32>, tensor<i32>
  }
}
