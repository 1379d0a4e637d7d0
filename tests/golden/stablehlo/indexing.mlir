module @indexing {
  func.func public @main(%x: tensor<4x6xf32>, %rows: tensor<5xi32>, %row: tensor<i32>) -> (tensor<4x2xf32>, tensor<4x2xi32>, tensor<4xi32>, tensor<4x6xf32>, tensor<5x6xf32>, tensor<4x6xf32>, tensor<4x6xf32>, tensor<4x6xf32>, tensor<6x4xf32>, tensor<4x6xf32>) {
    %0 = stablehlo.iota dim = 1 : tensor<4x6xi32>
    %1:2 = "stablehlo.sort"(%x, %0) <{dimension = 1 : i64, is_stable = true}> ({
    ^bb0(%_a0: tensor<f32>, %_b0: tensor<f32>, %_a1: tensor<i32>, %_b1: tensor<i32>):
      %2 = stablehlo.constant dense<0x00000000> : tensor<f32>
      %3 = stablehlo.constant dense<0x7FC00000> : tensor<f32>
      %_a0z = stablehlo.compare EQ, %_a0, %2, FLOAT : (tensor<f32>, tensor<f32>) -> tensor<i1>
      %_a0n = stablehlo.compare NE, %_a0, %_a0, FLOAT : (tensor<f32>, tensor<f32>) -> tensor<i1>
      %_a0s = stablehlo.select %_a0z, %2, %_a0 : tensor<i1>, tensor<f32>
      %_a0k = stablehlo.select %_a0n, %3, %_a0s : tensor<i1>, tensor<f32>
      %_b0z = stablehlo.compare EQ, %_b0, %2, FLOAT : (tensor<f32>, tensor<f32>) -> tensor<i1>
      %_b0n = stablehlo.compare NE, %_b0, %_b0, FLOAT : (tensor<f32>, tensor<f32>) -> tensor<i1>
      %_b0s = stablehlo.select %_b0z, %2, %_b0 : tensor<i1>, tensor<f32>
      %_b0k = stablehlo.select %_b0n, %3, %_b0s : tensor<i1>, tensor<f32>
      %_c = stablehlo.compare GT, %_a0k, %_b0k, TOTALORDER : (tensor<f32>, tensor<f32>) -> tensor<i1>
      stablehlo.return %_c : tensor<i1>
    }) : (tensor<4x6xf32>, tensor<4x6xi32>) -> (tensor<4x6xf32>, tensor<4x6xi32>)
    %4 = stablehlo.slice %1#0 [0:4, 0:2] : (tensor<4x6xf32>) -> tensor<4x2xf32>
    %5 = stablehlo.slice %1#1 [0:4, 0:2] : (tensor<4x6xi32>) -> tensor<4x2xi32>
    %7 = stablehlo.iota dim = 1 : tensor<4x6xi32>
    %8 = stablehlo.constant dense<0xFF800000> : tensor<f32>
    %9 = stablehlo.constant dense<0> : tensor<i32>
    %10:2 = stablehlo.reduce(%x init: %8), (%7 init: %9) across dimensions = [1] : (tensor<4x6xf32>, tensor<4x6xi32>, tensor<f32>, tensor<i32>) -> (tensor<4xf32>, tensor<4xi32>)
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
    %12 = stablehlo.constant dense<0.0> : tensor<f32>
    %11 = "stablehlo.reduce_window"(%x, %12) <{base_dilations = array<i64: 1, 1>, padding = dense<[[0, 0], [5, 0]]> : tensor<2x2xi64>, window_dilations = array<i64: 1, 1>, window_dimensions = array<i64: 1, 6>, window_strides = array<i64: 1, 1>}> ({
    ^bb0(%_a: tensor<f32>, %_b: tensor<f32>):
      %_s = stablehlo.add %_a, %_b : tensor<f32>
      stablehlo.return %_s : tensor<f32>
    }) : (tensor<4x6xf32>, tensor<f32>) -> tensor<4x6xf32>
    %13 = "stablehlo.gather"(%x, %rows) <{dimension_numbers = #stablehlo.gather<offset_dims = [1], collapsed_slice_dims = [0], start_index_map = [0], index_vector_dim = 1>, indices_are_sorted = false, slice_sizes = array<i64: 1, 6>}> : (tensor<4x6xf32>, tensor<5xi32>) -> tensor<5x6xf32>
    %14 = stablehlo.constant dense<0x40000000> : tensor<5x6xf32>
    %15 = stablehlo.multiply %13, %14 : tensor<5x6xf32>
    %16 = "stablehlo.scatter"(%x, %rows, %15) <{indices_are_sorted = false, scatter_dimension_numbers = #stablehlo.scatter<update_window_dims = [1], inserted_window_dims = [0], scatter_dims_to_operand_dims = [0], index_vector_dim = 1>, unique_indices = false}> ({
    ^bb0(%_a: tensor<f32>, %_b: tensor<f32>):
      %_s = stablehlo.add %_a, %_b : tensor<f32>
      stablehlo.return %_s : tensor<f32>
    }) : (tensor<4x6xf32>, tensor<5xi32>, tensor<5x6xf32>) -> tensor<4x6xf32>
    %17 = stablehlo.constant dense<0> : tensor<i32>
    %18 = stablehlo.dynamic_slice %x, %row, %17, sizes = [1, 6] : (tensor<4x6xf32>, tensor<i32>, tensor<i32>) -> tensor<1x6xf32>
    %19 = stablehlo.reshape %18 : (tensor<1x6xf32>) -> tensor<6xf32>
    %20 = stablehlo.constant dense<0x3F800000> : tensor<6xf32>
    %21 = stablehlo.add %19, %20 : tensor<6xf32>
    %22 = stablehlo.reshape %21 : (tensor<6xf32>) -> tensor<1x6xf32>
    %23 = stablehlo.dynamic_update_slice %x, %22, %row, %17 : (tensor<4x6xf32>, tensor<1x6xf32>, tensor<i32>, tensor<i32>) -> tensor<4x6xf32>
    %24 = stablehlo.slice %x [0:4, 1:6] : (tensor<4x6xf32>) -> tensor<4x5xf32>
    %25 = stablehlo.constant dense<0x00000000> : tensor<f32>
    %26 = stablehlo.pad %24, %25, low = [0, 1], high = [0, 0], interior = [0, 0] : (tensor<4x5xf32>, tensor<f32>) -> tensor<4x6xf32>
    %27 = stablehlo.reverse %26, dims = [0] : tensor<4x6xf32>
    %28 = stablehlo.iota dim = 0 : tensor<4x6xi32>
    %29 = stablehlo.constant dense<0> : tensor<4x6xi32>
    %30 = stablehlo.add %28, %29 : tensor<4x6xi32>
    %31 = stablehlo.compare LE, %0, %30, SIGNED : (tensor<4x6xi32>, tensor<4x6xi32>) -> tensor<4x6xi1>
    %32 = stablehlo.constant dense<0xFF800000> : tensor<4x6xf32>
    %33 = stablehlo.select %31, %x, %32 : tensor<4x6xi1>, tensor<4x6xf32>
    %34 = stablehlo.transpose %33, dims = [1, 0] : (tensor<4x6xf32>) -> tensor<6x4xf32>
    %36 = stablehlo.constant dense<0xFF800000> : tensor<f32>
    %35 = stablehlo.reduce(%x init: %36) applies stablehlo.maximum across dimensions = [1] : (tensor<4x6xf32>, tensor<f32>) -> tensor<4xf32>
    %37 = stablehlo.constant dense<0x3F800000> : tensor<f32>
    %38 = stablehlo.broadcast_in_dim %37, dims = [] : (tensor<f32>) -> tensor<4xf32>
    %39 = stablehlo.broadcast_in_dim %35, dims = [0] : (tensor<4xf32>) -> tensor<4x6xf32>
    %40 = stablehlo.compare EQ, %x, %39, FLOAT : (tensor<4x6xf32>, tensor<4x6xf32>) -> tensor<4x6xi1>
    %41 = stablehlo.convert %40 : (tensor<4x6xi1>) -> tensor<4x6xf32>
    %43 = stablehlo.constant dense<0.0> : tensor<f32>
    %42 = stablehlo.reduce(%41 init: %43) applies stablehlo.add across dimensions = [1] : (tensor<4x6xf32>, tensor<f32>) -> tensor<4xf32>
    %44 = stablehlo.divide %38, %42 : tensor<4xf32>
    %45 = stablehlo.broadcast_in_dim %44, dims = [0] : (tensor<4xf32>) -> tensor<4x6xf32>
    %46 = stablehlo.constant dense<0x00000000> : tensor<4x6xf32>
    %47 = stablehlo.select %40, %45, %46 : tensor<4x6xi1>, tensor<4x6xf32>
    %48 = stablehlo.broadcast_in_dim %37, dims = [] : (tensor<f32>) -> tensor<5x6xf32>
    %49 = "stablehlo.scatter"(%47, %rows, %48) <{indices_are_sorted = false, scatter_dimension_numbers = #stablehlo.scatter<update_window_dims = [1], inserted_window_dims = [0], scatter_dims_to_operand_dims = [0], index_vector_dim = 1>, unique_indices = false}> ({
    ^bb0(%_a: tensor<f32>, %_b: tensor<f32>):
      %_s = stablehlo.add %_a, %_b : tensor<f32>
      stablehlo.return %_s : tensor<f32>
    }) : (tensor<4x6xf32>, tensor<5xi32>, tensor<5x6xf32>) -> tensor<4x6xf32>
    // largest, places, argmax, running, taken, added, replaced, shifted, masked, d_x
    return %4, %5, %10#1, %11, %13, %16, %23, %27, %34, %49 : tensor<4x2xf32>, tensor<4x2xi32>, tensor<4xi32>, tensor<4x6xf32>, tensor<5x6xf32>, tensor<4x6xf32>, tensor<4x6xf32>, tensor<4x6xf32>, tensor<6x4xf32>, tensor<4x6xf32>
  }
}
