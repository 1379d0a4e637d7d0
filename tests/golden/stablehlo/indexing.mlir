module @indexing {
  func.func public @main(%x: tensor<4x6xf32>, %rows: tensor<5xi32>, %row: tensor<i32>) -> (tensor<4x2xf32>, tensor<4x2xi32>, tensor<4xi32>, tensor<4x6xf32>, tensor<5x6xf32>, tensor<4x6xf32>, tensor<4x6xf32>, tensor<4x6xf32>, tensor<6x4xf32>, tensor<4x6xf32>) {
    %0 = stablehlo.iota dim = 1 : tensor<4x6xi32>
    %1:2 = "stablehlo.sort"(%x, %0) <{dimension = 1 : i64, is_stable = true}> ({
    ^bb0(%_a0: tensor<f32>, %_b0: tensor<f32>, %_a1: tensor<i32>, %_b1: tensor<i32>):
      %_c = stablehlo.compare GT, %_a0, %_b0, TOTALORDER : (tensor<f32>, tensor<f32>) -> tensor<i1>
      stablehlo.return %_c : tensor<i1>
    }) : (tensor<4x6xf32>, tensor<4x6xi32>) -> (tensor<4x6xf32>, tensor<4x6xi32>)
    %2 = stablehlo.slice %1#0 [0:4, 0:2] : (tensor<4x6xf32>) -> tensor<4x2xf32>
    %3 = stablehlo.slice %1#1 [0:4, 0:2] : (tensor<4x6xi32>) -> tensor<4x2xi32>
    %5 = stablehlo.iota dim = 1 : tensor<4x6xi32>
    %6 = stablehlo.constant dense<0xFF800000> : tensor<f32>
    %7 = stablehlo.constant dense<0> : tensor<i32>
    %8:2 = stablehlo.reduce(%x init: %6), (%5 init: %7) across dimensions = [1] : (tensor<4x6xf32>, tensor<4x6xi32>, tensor<f32>, tensor<i32>) -> (tensor<4xf32>, tensor<4xi32>)
     reducer(%_a: tensor<f32>, %_b: tensor<f32>) (%_i: tensor<i32>, %_j: tensor<i32>) {
      %_gt = stablehlo.compare GT, %_a, %_b, FLOAT : (tensor<f32>, tensor<f32>) -> tensor<i1>
      %_nan = stablehlo.compare NE, %_a, %_a, FLOAT : (tensor<f32>, tensor<f32>) -> tensor<i1>
      %_wins = stablehlo.or %_gt, %_nan : tensor<i1>
      %_eq = stablehlo.compare EQ, %_a, %_b, FLOAT : (tensor<f32>, tensor<f32>) -> tensor<i1>
      %_first = stablehlo.compare LT, %_i, %_j, SIGNED : (tensor<i32>, tensor<i32>) -> tensor<i1>
      %_tie = stablehlo.and %_eq, %_first : tensor<i1>
      %_index = stablehlo.or %_wins, %_tie : tensor<i1>
      %_v = stablehlo.select %_wins, %_a, %_b : tensor<i1>, tensor<f32>
      %_k = stablehlo.select %_index, %_i, %_j : tensor<i1>, tensor<i32>
      stablehlo.return %_v, %_k : tensor<f32>, tensor<i32>
    }
    %10 = stablehlo.constant dense<0.0> : tensor<f32>
    %9 = "stablehlo.reduce_window"(%x, %10) <{base_dilations = array<i64: 1, 1>, padding = dense<[[0, 0], [5, 0]]> : tensor<2x2xi64>, window_dilations = array<i64: 1, 1>, window_dimensions = array<i64: 1, 6>, window_strides = array<i64: 1, 1>}> ({
    ^bb0(%_a: tensor<f32>, %_b: tensor<f32>):
      %_s = stablehlo.add %_a, %_b : tensor<f32>
      stablehlo.return %_s : tensor<f32>
    }) : (tensor<4x6xf32>, tensor<f32>) -> tensor<4x6xf32>
    %11 = "stablehlo.gather"(%x, %rows) <{dimension_numbers = #stablehlo.gather<offset_dims = [1], collapsed_slice_dims = [0], start_index_map = [0], index_vector_dim = 1>, indices_are_sorted = false, slice_sizes = array<i64: 1, 6>}> : (tensor<4x6xf32>, tensor<5xi32>) -> tensor<5x6xf32>
    %12 = stablehlo.constant dense<0x40000000> : tensor<5x6xf32>
    %13 = stablehlo.multiply %11, %12 : tensor<5x6xf32>
    %14 = "stablehlo.scatter"(%x, %rows, %13) <{indices_are_sorted = false, scatter_dimension_numbers = #stablehlo.scatter<update_window_dims = [1], inserted_window_dims = [0], scatter_dims_to_operand_dims = [0], index_vector_dim = 1>, unique_indices = false}> ({
    ^bb0(%_a: tensor<f32>, %_b: tensor<f32>):
      %_s = stablehlo.add %_a, %_b : tensor<f32>
      stablehlo.return %_s : tensor<f32>
    }) : (tensor<4x6xf32>, tensor<5xi32>, tensor<5x6xf32>) -> tensor<4x6xf32>
    %15 = stablehlo.constant dense<0> : tensor<i32>
    %16 = stablehlo.dynamic_slice %x, %row, %15, sizes = [1, 6] : (tensor<4x6xf32>, tensor<i32>, tensor<i32>) -> tensor<1x6xf32>
    %17 = stablehlo.reshape %16 : (tensor<1x6xf32>) -> tensor<6xf32>
    %18 = stablehlo.constant dense<0x3F800000> : tensor<6xf32>
    %19 = stablehlo.add %17, %18 : tensor<6xf32>
    %20 = stablehlo.reshape %19 : (tensor<6xf32>) -> tensor<1x6xf32>
    %21 = stablehlo.dynamic_update_slice %x, %20, %row, %15 : (tensor<4x6xf32>, tensor<1x6xf32>, tensor<i32>, tensor<i32>) -> tensor<4x6xf32>
    %22 = stablehlo.slice %x [0:4, 1:6] : (tensor<4x6xf32>) -> tensor<4x5xf32>
    %23 = stablehlo.constant dense<0x00000000> : tensor<f32>
    %24 = stablehlo.pad %22, %23, low = [0, 1], high = [0, 0], interior = [0, 0] : (tensor<4x5xf32>, tensor<f32>) -> tensor<4x6xf32>
    %25 = stablehlo.reverse %24, dims = [0] : tensor<4x6xf32>
    %26 = stablehlo.iota dim = 0 : tensor<4x6xi32>
    %27 = stablehlo.constant dense<0> : tensor<4x6xi32>
    %28 = stablehlo.add %26, %27 : tensor<4x6xi32>
    %29 = stablehlo.compare LE, %0, %28, SIGNED : (tensor<4x6xi32>, tensor<4x6xi32>) -> tensor<4x6xi1>
    %30 = stablehlo.constant dense<0xFF800000> : tensor<4x6xf32>
    %31 = stablehlo.select %29, %x, %30 : tensor<4x6xi1>, tensor<4x6xf32>
    %32 = stablehlo.transpose %31, dims = [1, 0] : (tensor<4x6xf32>) -> tensor<6x4xf32>
    %34 = stablehlo.constant dense<0xFF800000> : tensor<f32>
    %33 = stablehlo.reduce(%x init: %34) applies stablehlo.maximum across dimensions = [1] : (tensor<4x6xf32>, tensor<f32>) -> tensor<4xf32>
    %35 = stablehlo.constant dense<0x3F800000> : tensor<f32>
    %36 = stablehlo.broadcast_in_dim %35, dims = [] : (tensor<f32>) -> tensor<4xf32>
    %37 = stablehlo.broadcast_in_dim %33, dims = [0] : (tensor<4xf32>) -> tensor<4x6xf32>
    %38 = stablehlo.compare EQ, %x, %37, FLOAT : (tensor<4x6xf32>, tensor<4x6xf32>) -> tensor<4x6xi1>
    %39 = stablehlo.convert %38 : (tensor<4x6xi1>) -> tensor<4x6xf32>
    %41 = stablehlo.constant dense<0.0> : tensor<f32>
    %40 = stablehlo.reduce(%39 init: %41) applies stablehlo.add across dimensions = [1] : (tensor<4x6xf32>, tensor<f32>) -> tensor<4xf32>
    %42 = stablehlo.divide %36, %40 : tensor<4xf32>
    %43 = stablehlo.broadcast_in_dim %42, dims = [0] : (tensor<4xf32>) -> tensor<4x6xf32>
    %44 = stablehlo.constant dense<0x00000000> : tensor<4x6xf32>
    %45 = stablehlo.select %38, %43, %44 : tensor<4x6xi1>, tensor<4x6xf32>
    %46 = stablehlo.broadcast_in_dim %35, dims = [] : (tensor<f32>) -> tensor<5x6xf32>
    %47 = "stablehlo.scatter"(%45, %rows, %46) <{indices_are_sorted = false, scatter_dimension_numbers = #stablehlo.scatter<update_window_dims = [1], inserted_window_dims = [0], scatter_dims_to_operand_dims = [0], index_vector_dim = 1>, unique_indices = false}> ({
    ^bb0(%_a: tensor<f32>, %_b: tensor<f32>):
      %_s = stablehlo.add %_a, %_b : tensor<f32>
      stablehlo.return %_s : tensor<f32>
    }) : (tensor<4x6xf32>, tensor<5xi32>, tensor<5x6xf32>) -> tensor<4x6xf32>
    // largest, places, argmax, running, taken, added, replaced, shifted, masked, d_x
    return %2, %3, %8#1, %9, %11, %14, %21, %25, %32, %47 : tensor<4x2xf32>, tensor<4x2xi32>, tensor<4xi32>, tensor<4x6xf32>, tensor<5x6xf32>, tensor<4x6xf32>, tensor<4x6xf32>, tensor<4x6xf32>, tensor<6x4xf32>, tensor<4x6xf32>
  }
}
