module @scanned {
  func.func public @main(%x: tensor<4x8xf32>, %gate: tensor<3x8x16xf32>, %up: tensor<3x8x16xf32>, %down: tensor<3x16x8xf32>) -> (tensor<f32>, tensor<3x8x16xf32>, tensor<3x8x16xf32>, tensor<3x16x8xf32>) {
    %1 = stablehlo.constant dense<0> : tensor<i32>
    %2 = stablehlo.constant dense<1> : tensor<i32>
    %3 = stablehlo.constant dense<2> : tensor<i32>
    %4 = stablehlo.constant dense<3> : tensor<i32>
    %5 = stablehlo.constant dense<0.0> : tensor<3x4x8xf32>
    %6 = stablehlo.constant dense<0.0> : tensor<3x4x16xf32>
    %11:4 = stablehlo.while(%7 = %1, %8 = %x, %9 = %5, %10 = %6) : tensor<i32>, tensor<4x8xf32>, tensor<3x4x8xf32>, tensor<3x4x16xf32>
    cond {
      %12 = stablehlo.compare LT, %7, %4, SIGNED : (tensor<i32>, tensor<i32>) -> tensor<i1>
      stablehlo.return %12 : tensor<i1>
    } do {
      %13 = stablehlo.dynamic_slice %gate, %7, %1, %1, sizes = [1, 8, 16] : (tensor<3x8x16xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<1x8x16xf32>
      %14 = stablehlo.reshape %13 : (tensor<1x8x16xf32>) -> tensor<8x16xf32>
      %15 = stablehlo.dynamic_slice %up, %7, %1, %1, sizes = [1, 8, 16] : (tensor<3x8x16xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<1x8x16xf32>
      %16 = stablehlo.reshape %15 : (tensor<1x8x16xf32>) -> tensor<8x16xf32>
      %17 = stablehlo.dynamic_slice %down, %7, %1, %1, sizes = [1, 16, 8] : (tensor<3x16x8xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<1x16x8xf32>
      %18 = stablehlo.reshape %17 : (tensor<1x16x8xf32>) -> tensor<16x8xf32>
      %19:2 = func.call @layer.0(%8, %14, %16, %18) : (tensor<4x8xf32>, tensor<8x16xf32>, tensor<8x16xf32>, tensor<16x8xf32>) -> (tensor<4x8xf32>, tensor<4x16xf32>)
      %20 = stablehlo.reshape %8 : (tensor<4x8xf32>) -> tensor<1x4x8xf32>
      %21 = stablehlo.dynamic_update_slice %9, %20, %7, %1, %1 : (tensor<3x4x8xf32>, tensor<1x4x8xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<3x4x8xf32>
      %22 = stablehlo.reshape %19#1 : (tensor<4x16xf32>) -> tensor<1x4x16xf32>
      %23 = stablehlo.dynamic_update_slice %10, %22, %7, %1, %1 : (tensor<3x4x16xf32>, tensor<1x4x16xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<3x4x16xf32>
      %24 = stablehlo.add %7, %2 : tensor<i32>
      stablehlo.return %24, %19#0, %21, %23 : tensor<i32>, tensor<4x8xf32>, tensor<3x4x8xf32>, tensor<3x4x16xf32>
    }
    %25 = stablehlo.multiply %11#1, %11#1 : tensor<4x8xf32>
    %27 = stablehlo.constant dense<0.0> : tensor<f32>
    %26 = stablehlo.reduce(%25 init: %27) applies stablehlo.add across dimensions = [0, 1] : (tensor<4x8xf32>, tensor<f32>) -> tensor<f32>
    %28 = stablehlo.constant dense<0x3D000000> : tensor<f32>
    %29 = stablehlo.multiply %26, %28 : tensor<f32>
    %30 = stablehlo.constant dense<0x3F800000> : tensor<f32>
    %31 = stablehlo.multiply %30, %28 : tensor<f32>
    %32 = stablehlo.broadcast_in_dim %31, dims = [] : (tensor<f32>) -> tensor<4x8xf32>
    %33 = stablehlo.multiply %32, %11#1 : tensor<4x8xf32>
    %34 = stablehlo.add %33, %33 : tensor<4x8xf32>
    %36 = stablehlo.constant dense<0> : tensor<i32>
    %37 = stablehlo.constant dense<1> : tensor<i32>
    %38 = stablehlo.constant dense<2> : tensor<i32>
    %39 = stablehlo.constant dense<3> : tensor<i32>
    %40 = stablehlo.constant dense<0.0> : tensor<3x8x16xf32>
    %41 = stablehlo.constant dense<0.0> : tensor<3x8x16xf32>
    %42 = stablehlo.constant dense<0.0> : tensor<3x16x8xf32>
    %48:5 = stablehlo.while(%43 = %36, %44 = %34, %45 = %40, %46 = %41, %47 = %42) : tensor<i32>, tensor<4x8xf32>, tensor<3x8x16xf32>, tensor<3x8x16xf32>, tensor<3x16x8xf32>
    cond {
      %49 = stablehlo.compare LT, %43, %39, SIGNED : (tensor<i32>, tensor<i32>) -> tensor<i1>
      stablehlo.return %49 : tensor<i1>
    } do {
      %50 = stablehlo.subtract %38, %43 : tensor<i32>
      %51 = stablehlo.dynamic_slice %11#2, %50, %36, %36, sizes = [1, 4, 8] : (tensor<3x4x8xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<1x4x8xf32>
      %52 = stablehlo.reshape %51 : (tensor<1x4x8xf32>) -> tensor<4x8xf32>
      %53 = stablehlo.dynamic_slice %11#3, %50, %36, %36, sizes = [1, 4, 16] : (tensor<3x4x16xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<1x4x16xf32>
      %54 = stablehlo.reshape %53 : (tensor<1x4x16xf32>) -> tensor<4x16xf32>
      %55 = stablehlo.dynamic_slice %gate, %50, %36, %36, sizes = [1, 8, 16] : (tensor<3x8x16xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<1x8x16xf32>
      %56 = stablehlo.reshape %55 : (tensor<1x8x16xf32>) -> tensor<8x16xf32>
      %57 = stablehlo.dynamic_slice %up, %50, %36, %36, sizes = [1, 8, 16] : (tensor<3x8x16xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<1x8x16xf32>
      %58 = stablehlo.reshape %57 : (tensor<1x8x16xf32>) -> tensor<8x16xf32>
      %59 = stablehlo.dynamic_slice %down, %50, %36, %36, sizes = [1, 16, 8] : (tensor<3x16x8xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<1x16x8xf32>
      %60 = stablehlo.reshape %59 : (tensor<1x16x8xf32>) -> tensor<16x8xf32>
      %61 = stablehlo.dot_general %52, %56, contracting_dims = [1] x [0] : (tensor<4x8xf32>, tensor<8x16xf32>) -> tensor<4x16xf32>
      %62 = stablehlo.logistic %61 : tensor<4x16xf32>
      %63 = stablehlo.multiply %61, %62 : tensor<4x16xf32>
      %64 = stablehlo.dot_general %52, %58, contracting_dims = [1] x [0] : (tensor<4x8xf32>, tensor<8x16xf32>) -> tensor<4x16xf32>
      %65 = stablehlo.dot_general %44, %60, contracting_dims = [1] x [1] : (tensor<4x8xf32>, tensor<16x8xf32>) -> tensor<4x16xf32>
      %66 = stablehlo.dot_general %54, %44, contracting_dims = [0] x [0] : (tensor<4x16xf32>, tensor<4x8xf32>) -> tensor<16x8xf32>
      %67 = stablehlo.multiply %65, %64 : tensor<4x16xf32>
      %68 = stablehlo.multiply %65, %63 : tensor<4x16xf32>
      %69 = stablehlo.dot_general %68, %58, contracting_dims = [1] x [1] : (tensor<4x16xf32>, tensor<8x16xf32>) -> tensor<4x8xf32>
      %70 = stablehlo.dot_general %52, %68, contracting_dims = [0] x [0] : (tensor<4x8xf32>, tensor<4x16xf32>) -> tensor<8x16xf32>
      %71 = stablehlo.add %44, %69 : tensor<4x8xf32>
      %72 = stablehlo.multiply %67, %62 : tensor<4x16xf32>
      %73 = stablehlo.multiply %67, %61 : tensor<4x16xf32>
      %74 = stablehlo.constant dense<0x3F800000> : tensor<4x16xf32>
      %75 = stablehlo.subtract %74, %62 : tensor<4x16xf32>
      %76 = stablehlo.multiply %62, %75 : tensor<4x16xf32>
      %77 = stablehlo.multiply %73, %76 : tensor<4x16xf32>
      %78 = stablehlo.add %72, %77 : tensor<4x16xf32>
      %79 = stablehlo.dot_general %78, %56, contracting_dims = [1] x [1] : (tensor<4x16xf32>, tensor<8x16xf32>) -> tensor<4x8xf32>
      %80 = stablehlo.dot_general %52, %78, contracting_dims = [0] x [0] : (tensor<4x8xf32>, tensor<4x16xf32>) -> tensor<8x16xf32>
      %81 = stablehlo.add %71, %79 : tensor<4x8xf32>
      %82 = stablehlo.reshape %80 : (tensor<8x16xf32>) -> tensor<1x8x16xf32>
      %83 = stablehlo.dynamic_update_slice %45, %82, %50, %36, %36 : (tensor<3x8x16xf32>, tensor<1x8x16xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<3x8x16xf32>
      %84 = stablehlo.reshape %70 : (tensor<8x16xf32>) -> tensor<1x8x16xf32>
      %85 = stablehlo.dynamic_update_slice %46, %84, %50, %36, %36 : (tensor<3x8x16xf32>, tensor<1x8x16xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<3x8x16xf32>
      %86 = stablehlo.reshape %66 : (tensor<16x8xf32>) -> tensor<1x16x8xf32>
      %87 = stablehlo.dynamic_update_slice %47, %86, %50, %36, %36 : (tensor<3x16x8xf32>, tensor<1x16x8xf32>, tensor<i32>, tensor<i32>, tensor<i32>) -> tensor<3x16x8xf32>
      %88 = stablehlo.add %43, %37 : tensor<i32>
      stablehlo.return %88, %81, %83, %85, %87 : tensor<i32>, tensor<4x8xf32>, tensor<3x8x16xf32>, tensor<3x8x16xf32>, tensor<3x16x8xf32>
    }
    // loss, d_gate, d_up, d_down
    return %29, %48#2, %48#3, %48#4 : tensor<f32>, tensor<3x8x16xf32>, tensor<3x8x16xf32>, tensor<3x16x8xf32>
  }
  func.func private @layer.0(%arg0: tensor<4x8xf32>, %arg1: tensor<8x16xf32>, %arg2: tensor<8x16xf32>, %arg3: tensor<16x8xf32>) -> (tensor<4x8xf32>, tensor<4x16xf32>) {
    %0 = stablehlo.dot_general %arg0, %arg1, contracting_dims = [1] x [0] : (tensor<4x8xf32>, tensor<8x16xf32>) -> tensor<4x16xf32>
    %1 = stablehlo.logistic %0 : tensor<4x16xf32>
    %2 = stablehlo.multiply %0, %1 : tensor<4x16xf32>
    %3 = stablehlo.dot_general %arg0, %arg2, contracting_dims = [1] x [0] : (tensor<4x8xf32>, tensor<8x16xf32>) -> tensor<4x16xf32>
    %4 = stablehlo.multiply %2, %3 : tensor<4x16xf32>
    %5 = stablehlo.dot_general %4, %arg3, contracting_dims = [1] x [0] : (tensor<4x16xf32>, tensor<16x8xf32>) -> tensor<4x8xf32>
    %6 = stablehlo.add %arg0, %5 : tensor<4x8xf32>
    return %6, %4 : tensor<4x8xf32>, tensor<4x16xf32>
  }
}
