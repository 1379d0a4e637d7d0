module @accumulating {
  func.func public @main(%x: tensor<4x8xf32>, %gate: tensor<3x8x16xf32>, %up: tensor<3x8x16xf32>, %down: tensor<3x16x8xf32>, %total_gate: tensor<3x8x16xf32> {tf.aliasing_output = 1 : i32}, %total_up: tensor<3x8x16xf32> {tf.aliasing_output = 2 : i32}, %total_down: tensor<3x16x8xf32> {tf.aliasing_output = 3 : i32}) -> (tensor<f32>, tensor<3x8x16xf32>, tensor<3x8x16xf32>, tensor<3x16x8xf32>) {
    %1 = stablehlo.constant dense<0> : tensor<i32>
    %2 = stablehlo.constant dense<1> : tensor<i32>
    %3 = stablehlo.constant dense<2> : tensor<i32>
    %4 = stablehlo.constant dense<3> : tensor<i32>
    %5 = stablehlo.constant dense<0.0> : tensor<3x4x8xf32>
    %6 = stablehlo.constant dense<0.0> : tensor<3x4x16xf32>
    %7 = stablehlo.constant dense<0.0> : tensor<3x4x16xf32>
    %8 = stablehlo.constant dense<0.0> : tensor<3x4x16xf32>
    %9 = stablehlo.constant dense<0.0> : tensor<3x4x16xf32>
    %10 = stablehlo.constant dense<0.0> : tensor<3x4x16xf32>
    %19:8 = stablehlo.while(%11 = %1, %12 = %x, %13 = %5, %14 = %6, %15 = %7, %16 = %8, %17 = %9, %18 = %10) : tensor<i32>, tensor<4x8xf32>, tensor<3x4x8xf32>, tensor<3x4x16xf32>, tensor<3x4x16xf32>, tensor<3x4x16xf32>, tensor<3x4x16xf32>, tensor<3x4x16xf32>
    cond {
      %20 = stablehlo.compare LT, %11, %4, SIGNED : (tensor<i32>, tensor<i32>) -> tensor<i1>
      stablehlo.return %20 : tensor<i1>
    } do {
      %21 = stablehlo.dynamic_slice %gate, %11, %1, %1, sizes = [1, 8, 16] : (tensor<3x8x16xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<1x8x16xf32>
      %22 = stablehlo.reshape %21 : (tensor<1x8x16xf32>) -> tensor<8x16xf32>
      %23 = stablehlo.dynamic_slice %up, %11, %1, %1, sizes = [1, 8, 16] : (tensor<3x8x16xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<1x8x16xf32>
      %24 = stablehlo.reshape %23 : (tensor<1x8x16xf32>) -> tensor<8x16xf32>
      %25 = stablehlo.dynamic_slice %down, %11, %1, %1, sizes = [1, 16, 8] : (tensor<3x16x8xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<1x16x8xf32>
      %26 = stablehlo.reshape %25 : (tensor<1x16x8xf32>) -> tensor<16x8xf32>
      %27:6 = func.call @layer.0(%12, %22, %24, %26) : (tensor<4x8xf32>, tensor<8x16xf32>, tensor<8x16xf32>, tensor<16x8xf32>) -> (tensor<4x8xf32>, tensor<4x16xf32>, tensor<4x16xf32>, tensor<4x16xf32>, tensor<4x16xf32>, tensor<4x16xf32>)
      %28 = stablehlo.reshape %12 : (tensor<4x8xf32>) -> tensor<1x4x8xf32>
      %29 = stablehlo.dynamic_update_slice %13, %28, %11, %1, %1 : (tensor<3x4x8xf32>, tensor<1x4x8xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<3x4x8xf32>
      %30 = stablehlo.reshape %27#1 : (tensor<4x16xf32>) -> tensor<1x4x16xf32>
      %31 = stablehlo.dynamic_update_slice %14, %30, %11, %1, %1 : (tensor<3x4x16xf32>, tensor<1x4x16xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<3x4x16xf32>
      %32 = stablehlo.reshape %27#2 : (tensor<4x16xf32>) -> tensor<1x4x16xf32>
      %33 = stablehlo.dynamic_update_slice %15, %32, %11, %1, %1 : (tensor<3x4x16xf32>, tensor<1x4x16xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<3x4x16xf32>
      %34 = stablehlo.reshape %27#3 : (tensor<4x16xf32>) -> tensor<1x4x16xf32>
      %35 = stablehlo.dynamic_update_slice %16, %34, %11, %1, %1 : (tensor<3x4x16xf32>, tensor<1x4x16xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<3x4x16xf32>
      %36 = stablehlo.reshape %27#4 : (tensor<4x16xf32>) -> tensor<1x4x16xf32>
      %37 = stablehlo.dynamic_update_slice %17, %36, %11, %1, %1 : (tensor<3x4x16xf32>, tensor<1x4x16xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<3x4x16xf32>
      %38 = stablehlo.reshape %27#5 : (tensor<4x16xf32>) -> tensor<1x4x16xf32>
      %39 = stablehlo.dynamic_update_slice %18, %38, %11, %1, %1 : (tensor<3x4x16xf32>, tensor<1x4x16xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<3x4x16xf32>
      %40 = stablehlo.add %11, %2 : tensor<i32>
      stablehlo.return %40, %27#0, %29, %31, %33, %35, %37, %39 : tensor<i32>, tensor<4x8xf32>, tensor<3x4x8xf32>, tensor<3x4x16xf32>, tensor<3x4x16xf32>, tensor<3x4x16xf32>, tensor<3x4x16xf32>, tensor<3x4x16xf32>
    }
    %41 = stablehlo.multiply %19#1, %19#1 : tensor<4x8xf32>
    %43 = stablehlo.constant dense<0.0> : tensor<f32>
    %42 = stablehlo.reduce(%41 init: %43) applies stablehlo.add across dimensions = [0, 1] : (tensor<4x8xf32>, tensor<f32>) -> tensor<f32>
    %44 = stablehlo.constant dense<0x3D000000> : tensor<f32>
    %45 = stablehlo.multiply %42, %44 : tensor<f32>
    %46 = stablehlo.constant dense<0x3F800000> : tensor<f32>
    %47 = stablehlo.multiply %46, %44 : tensor<f32>
    %48 = stablehlo.broadcast_in_dim %47, dims = [] : (tensor<f32>) -> tensor<4x8xf32>
    %49 = stablehlo.multiply %48, %19#1 : tensor<4x8xf32>
    %50 = stablehlo.add %49, %49 : tensor<4x8xf32>
    %51 = stablehlo.iota dim = 0 : tensor<3xi32>
    %53 = stablehlo.constant dense<0> : tensor<i32>
    %54 = stablehlo.constant dense<1> : tensor<i32>
    %55 = stablehlo.constant dense<2> : tensor<i32>
    %56 = stablehlo.constant dense<3> : tensor<i32>
    %62:5 = stablehlo.while(%57 = %53, %58 = %50, %59 = %total_gate, %60 = %total_up, %61 = %total_down) : tensor<i32>, tensor<4x8xf32>, tensor<3x8x16xf32>, tensor<3x8x16xf32>, tensor<3x16x8xf32>
    cond {
      %63 = stablehlo.compare LT, %57, %56, SIGNED : (tensor<i32>, tensor<i32>) -> tensor<i1>
      stablehlo.return %63 : tensor<i1>
    } do {
      %64 = stablehlo.subtract %55, %57 : tensor<i32>
      %65 = stablehlo.dynamic_slice %19#2, %64, %53, %53, sizes = [1, 4, 8] : (tensor<3x4x8xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<1x4x8xf32>
      %66 = stablehlo.reshape %65 : (tensor<1x4x8xf32>) -> tensor<4x8xf32>
      %67 = stablehlo.dynamic_slice %19#3, %64, %53, %53, sizes = [1, 4, 16] : (tensor<3x4x16xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<1x4x16xf32>
      %68 = stablehlo.reshape %67 : (tensor<1x4x16xf32>) -> tensor<4x16xf32>
      %69 = stablehlo.dynamic_slice %19#4, %64, %53, %53, sizes = [1, 4, 16] : (tensor<3x4x16xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<1x4x16xf32>
      %70 = stablehlo.reshape %69 : (tensor<1x4x16xf32>) -> tensor<4x16xf32>
      %71 = stablehlo.dynamic_slice %19#5, %64, %53, %53, sizes = [1, 4, 16] : (tensor<3x4x16xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<1x4x16xf32>
      %72 = stablehlo.reshape %71 : (tensor<1x4x16xf32>) -> tensor<4x16xf32>
      %73 = stablehlo.dynamic_slice %19#6, %64, %53, %53, sizes = [1, 4, 16] : (tensor<3x4x16xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<1x4x16xf32>
      %74 = stablehlo.reshape %73 : (tensor<1x4x16xf32>) -> tensor<4x16xf32>
      %75 = stablehlo.dynamic_slice %19#7, %64, %53, %53, sizes = [1, 4, 16] : (tensor<3x4x16xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<1x4x16xf32>
      %76 = stablehlo.reshape %75 : (tensor<1x4x16xf32>) -> tensor<4x16xf32>
      %77 = stablehlo.dynamic_slice %gate, %64, %53, %53, sizes = [1, 8, 16] : (tensor<3x8x16xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<1x8x16xf32>
      %78 = stablehlo.reshape %77 : (tensor<1x8x16xf32>) -> tensor<8x16xf32>
      %79 = stablehlo.dynamic_slice %up, %64, %53, %53, sizes = [1, 8, 16] : (tensor<3x8x16xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<1x8x16xf32>
      %80 = stablehlo.reshape %79 : (tensor<1x8x16xf32>) -> tensor<8x16xf32>
      %81 = stablehlo.dynamic_slice %down, %64, %53, %53, sizes = [1, 16, 8] : (tensor<3x16x8xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<1x16x8xf32>
      %82 = stablehlo.reshape %81 : (tensor<1x16x8xf32>) -> tensor<16x8xf32>
      %83 = stablehlo.dynamic_slice %51, %64, sizes = [1] : (tensor<3xi32>, tensor<i32>) -> tensor<1xi32>
      %84 = stablehlo.reshape %83 : (tensor<1xi32>) -> tensor<i32>
      %85 = stablehlo.dot_general %58, %82, contracting_dims = [1] x [1] : (tensor<4x8xf32>, tensor<16x8xf32>) -> tensor<4x16xf32>
      %86 = stablehlo.dot_general %76, %58, contracting_dims = [0] x [0] : (tensor<4x16xf32>, tensor<4x8xf32>) -> tensor<16x8xf32>
      %87 = stablehlo.multiply %85, %74 : tensor<4x16xf32>
      %88 = stablehlo.multiply %85, %72 : tensor<4x16xf32>
      %89 = stablehlo.dot_general %88, %80, contracting_dims = [1] x [1] : (tensor<4x16xf32>, tensor<8x16xf32>) -> tensor<4x8xf32>
      %90 = stablehlo.dot_general %66, %88, contracting_dims = [0] x [0] : (tensor<4x8xf32>, tensor<4x16xf32>) -> tensor<8x16xf32>
      %91 = stablehlo.add %58, %89 : tensor<4x8xf32>
      %92 = stablehlo.multiply %87, %70 : tensor<4x16xf32>
      %93 = stablehlo.multiply %87, %68 : tensor<4x16xf32>
      %94 = stablehlo.constant dense<0x3F800000> : tensor<4x16xf32>
      %95 = stablehlo.subtract %94, %70 : tensor<4x16xf32>
      %96 = stablehlo.multiply %70, %95 : tensor<4x16xf32>
      %97 = stablehlo.multiply %93, %96 : tensor<4x16xf32>
      %98 = stablehlo.add %92, %97 : tensor<4x16xf32>
      %99 = stablehlo.dot_general %98, %78, contracting_dims = [1] x [1] : (tensor<4x16xf32>, tensor<8x16xf32>) -> tensor<4x8xf32>
      %100 = stablehlo.dot_general %66, %98, contracting_dims = [0] x [0] : (tensor<4x8xf32>, tensor<4x16xf32>) -> tensor<8x16xf32>
      %101 = stablehlo.add %91, %99 : tensor<4x8xf32>
      %102 = stablehlo.constant dense<0> : tensor<i32>
      %103 = stablehlo.dynamic_slice %59, %84, %102, %102, sizes = [1, 8, 16] : (tensor<3x8x16xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<1x8x16xf32>
      %104 = stablehlo.reshape %103 : (tensor<1x8x16xf32>) -> tensor<8x16xf32>
      %105 = stablehlo.add %104, %100 : tensor<8x16xf32>
      %106 = stablehlo.reshape %105 : (tensor<8x16xf32>) -> tensor<1x8x16xf32>
      %107 = stablehlo.dynamic_update_slice %59, %106, %84, %102, %102 : (tensor<3x8x16xf32>, tensor<1x8x16xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<3x8x16xf32>
      %108 = stablehlo.dynamic_slice %60, %84, %102, %102, sizes = [1, 8, 16] : (tensor<3x8x16xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<1x8x16xf32>
      %109 = stablehlo.reshape %108 : (tensor<1x8x16xf32>) -> tensor<8x16xf32>
      %110 = stablehlo.add %109, %90 : tensor<8x16xf32>
      %111 = stablehlo.reshape %110 : (tensor<8x16xf32>) -> tensor<1x8x16xf32>
      %112 = stablehlo.dynamic_update_slice %60, %111, %84, %102, %102 : (tensor<3x8x16xf32>, tensor<1x8x16xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<3x8x16xf32>
      %113 = stablehlo.dynamic_slice %61, %84, %102, %102, sizes = [1, 16, 8] : (tensor<3x16x8xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<1x16x8xf32>
      %114 = stablehlo.reshape %113 : (tensor<1x16x8xf32>) -> tensor<16x8xf32>
      %115 = stablehlo.add %114, %86 : tensor<16x8xf32>
      %116 = stablehlo.reshape %115 : (tensor<16x8xf32>) -> tensor<1x16x8xf32>
      %117 = stablehlo.dynamic_update_slice %61, %116, %84, %102, %102 : (tensor<3x16x8xf32>, tensor<1x16x8xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<3x16x8xf32>
      %118 = stablehlo.add %57, %54 : tensor<i32>
      stablehlo.return %118, %101, %107, %112, %117 : tensor<i32>, tensor<4x8xf32>, tensor<3x8x16xf32>, tensor<3x8x16xf32>, tensor<3x16x8xf32>
    }
    // loss, gate, up, down
    return %45, %62#2, %62#3, %62#4 : tensor<f32>, tensor<3x8x16xf32>, tensor<3x8x16xf32>, tensor<3x16x8xf32>
  }
  func.func private @layer.0(%arg0: tensor<4x8xf32>, %arg1: tensor<8x16xf32>, %arg2: tensor<8x16xf32>, %arg3: tensor<16x8xf32>) -> (tensor<4x8xf32>, tensor<4x16xf32>, tensor<4x16xf32>, tensor<4x16xf32>, tensor<4x16xf32>, tensor<4x16xf32>) {
    %0 = stablehlo.dot_general %arg0, %arg1, contracting_dims = [1] x [0] : (tensor<4x8xf32>, tensor<8x16xf32>) -> tensor<4x16xf32>
    %1 = stablehlo.logistic %0 : tensor<4x16xf32>
    %2 = stablehlo.multiply %0, %1 : tensor<4x16xf32>
    %3 = stablehlo.dot_general %arg0, %arg2, contracting_dims = [1] x [0] : (tensor<4x8xf32>, tensor<8x16xf32>) -> tensor<4x16xf32>
    %4 = stablehlo.multiply %2, %3 : tensor<4x16xf32>
    %5 = stablehlo.dot_general %4, %arg3, contracting_dims = [1] x [0] : (tensor<4x16xf32>, tensor<16x8xf32>) -> tensor<4x8xf32>
    %6 = stablehlo.add %arg0, %5 : tensor<4x8xf32>
    return %6, %0, %1, %2, %3, %4 : tensor<4x8xf32>, tensor<4x16xf32>, tensor<4x16xf32>, tensor<4x16xf32>, tensor<4x16xf32>, tensor<4x16xf32>
  }
}
